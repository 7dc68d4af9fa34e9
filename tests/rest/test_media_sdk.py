"""OpenAI's own client against every route that it knows."""

from __future__ import annotations

import base64
import io

import openai
import pytest
from conftest import Studio
from scripted_studio import content

PNG = b"\x89PNG\r\n\x1a\n picture"


def named(data: bytes, name: str) -> io.BytesIO:
    file = io.BytesIO(data)
    file.name = name
    return file


def test_a_film_from_its_prompt_to_its_bytes(client: openai.OpenAI, studio: Studio) -> None:
    film = client.videos.create_and_poll(
        prompt="a red circle",
        model="film",
        seconds="4",
        size="1280x720",
        input_reference=named(PNG, "first.png"),
        extra_body={"seed": 11, "generate_audio": False, "guidance": {"video": {"guidance_scale": 3.5}}},
    )
    assert (film.status, film.progress, film.seconds, film.size) == ("completed", 100, "4", "1280x736")
    params = studio.engine.resolved[0].params
    assert (params["seed"], params["generate_audio"]) == (11, False)
    assert params["guidance"] == {"video": {"guidance_scale": 3.5}}
    assert studio.engine.uploads[0] == {"images_0_image.png": PNG}
    assert client.videos.download_content(film.id).read() == content("video", 11)
    assert client.videos.download_content(film.id, variant="thumbnail").read() == content("thumbnail", 11)
    assert client.videos.retrieve(film.id).id == film.id


def test_films_are_listed_page_by_page(client: openai.OpenAI) -> None:
    made = [client.videos.create(prompt=f"film {index}").id for index in range(3)]
    listed = []
    for film in client.videos.list(limit=2):
        listed.append(film.id)
        if len(listed) == 3:
            break
    assert listed == made[::-1]


def test_films_are_made_of_films(client: openai.OpenAI, studio: Studio) -> None:
    film = client.videos.create_and_poll(prompt="a")
    remix = client.videos.remix(film.id, prompt="b")
    assert remix.remixed_from_video_id == film.id
    extension = client.videos.extend(prompt="on", seconds="8", video=named(b"\0\0\0\x18ftypisom", "a.mp4"))
    assert extension.seconds == "8"
    edit = client.videos.edit(
        prompt="b", video=named(b"\0\0\0\x18ftypisom", "a.mp4"), extra_body={"window": [0.5, 1.5]}
    )
    assert studio.engine.resolved[-1].params["window"] == [0.5, 1.5]
    for made in (remix, extension, edit):
        assert client.videos.poll(made.id).status == "completed"


def test_a_film_is_deleted(client: openai.OpenAI) -> None:
    film = client.videos.create(prompt="!wait")
    assert client.videos.delete(film.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(film.id)


def test_a_list_of_objects_travels_as_json(client: openai.OpenAI, studio: Studio) -> None:
    client.videos.create(prompt="x", extra_body={"adapters": '[["a", 0.5], {"name": "b"}]'})
    assert studio.engine.resolved[0].params["adapters"] == [
        {"name": "a", "strengths": [0.5]},
        {"name": "b", "strengths": [1.0]},
    ]
    with pytest.raises(openai.BadRequestError) as caught:
        client.videos.create(prompt="x", extra_body={"adapters": [{"name": "a", "scale": 2}, {"name": "b"}]})
    assert caught.value.param == "adapters"


def test_mistakes_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.videos.create(prompt="x", extra_body={"sed": 3})
    assert (bad.value.code, bad.value.param) == ("unknown_parameter", "sed")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.videos.create(prompt="x", model="sora-2")
    assert unknown.value.code == "model_not_found"
    film = client.videos.create(prompt="!wait")
    with pytest.raises(openai.ConflictError) as early:
        client.videos.download_content(film.id)
    assert early.value.code == "job_not_finished"
    client.videos.delete(film.id)


def test_a_failed_film_tells_its_error(client: openai.OpenAI) -> None:
    film = client.videos.create_and_poll(prompt="!fail")
    assert film.status == "failed"
    assert film.error is not None
    assert (film.error.code, film.error.message) == ("no_good", "the decoder met a NaN")


def test_pictures(client: openai.OpenAI) -> None:
    made = client.images.generate(prompt="x", n=2, size="1024x1024", output_format="webp", extra_body={"seed": 5})
    assert made.data is not None
    assert [base64.b64decode(item.b64_json or "") for item in made.data] == [content("image", 5), content("image", 6)]
    assert made.output_format == "webp"
    edited = client.images.edit(prompt="blue", image=named(PNG, "a.png"), extra_body={"strength": 0.5})
    assert edited.data
    again = client.images.edit(prompt="blue", image=[named(PNG, "a.png")])
    assert again.data
    with pytest.raises(openai.BadRequestError, match="mask"):
        client.images.edit(prompt="blue", image=named(PNG, "a.png"), mask=named(PNG, "m.png"))


def test_partial_pictures_are_streamed(client: openai.OpenAI) -> None:
    told = list(client.images.generate(prompt="!steps", stream=True, partial_images=2))
    assert [event.type for event in told] == [
        "image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"
    ]  # fmt: skip
    edits = list(client.images.edit(prompt="!steps", image=named(PNG, "a.png"), stream=True, partial_images=1))
    assert edits[-1].type == "image_edit.completed"
    with pytest.raises(openai.APIError, match="NaN"):
        list(client.images.generate(prompt="!fail", stream=True))


def test_models_say_what_they_can(client: openai.OpenAI) -> None:
    cards = {model.id: model.model_dump() for model in client.models.list()}
    assert cards["scripted-film"]["capabilities"] == ["image", "video", "audio"]
    assert cards["scripted-film"]["generation"]["frame_multiple"] == 8
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="scripted-film", messages=[{"role": "user", "content": "hi"}])


def test_chat_goes_on_beside_films(client: openai.OpenAI) -> None:
    film = client.videos.create(prompt="!wait")
    answer = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hello there"}])
    assert answer.choices[0].message.content == "hello there"
    client.videos.delete(film.id)
