/** Says to screen readers what others see happen. */

import { byId } from "./dom.js";

/** Spoken when there is a pause. */
export function announce(text) {
  const region = byId("announcer");
  region.textContent = "";
  requestAnimationFrame(() => {
    region.textContent = text;
  }); // the same words twice are said twice
}
