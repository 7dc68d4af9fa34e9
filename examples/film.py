"""A film with sound, step by step, while the same engine chats; then a picture of the same seed, made in one stage.

    python examples/film.py CHECKPOINT "a red fox runs through snow" [--upsampler FILE] [--distilled-lora FILE]
"""

import argparse

from braid import Braid, SamplingParams, VideoConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("prompt")
    parser.add_argument("--upsampler")
    parser.add_argument("--distilled-lora")
    arguments = parser.parse_args()
    video = VideoConfig(
        model=arguments.checkpoint, upsampler=arguments.upsampler, distilled_lora=arguments.distilled_lora
    )
    with Braid(video=video) as braid:
        generator = braid.diffusion  # waits until the video model is loaded
        generation = generator.start(arguments.prompt, path="film.mp4", seed=1, preview_every=2)
        answer = braid.llm.generate(arguments.prompt, SamplingParams(temperature=0, max_tokens=24))
        print(f"Meanwhile, the same language model goes on: {answer.text!r}")
        for update in generation:
            seen = "" if update.preview is None else f", the middle is {update.preview.mean():.0f} bright"
            print(f"{update.elapsed_s:6.1f} s  {update.stage} {update.step}/{update.num_steps}{seen}")
        film = generation.result()
        print(f"{film.path}: seconds by stage {film.timings}")
        picture = generator.generate(arguments.prompt, pipeline="one_stage", num_frames=1, seed=film.seed)
        print(picture.save("picture.png"))


if __name__ == "__main__":
    main()
