/** Light, dark, or as the system has it. */

import { byId } from "./dom.js";

const ORDER = ["auto", "light", "dark"];
const SAID = { auto: "as the system", light: "light", dark: "dark" };
const ICONS = { auto: "auto", light: "sun", dark: "moon" };

/** Connects the switch; `onChange` is called whenever colours change, by hand or by the system. */
export function connectTheme(settings, onChange) {
  const button = byId("theme-button");
  const apply = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.setAttribute("aria-label", `Colours: ${SAID[theme]}`);
    button.title = `Colours: ${SAID[theme]}`;
    byId("theme-icon").setAttribute("href", `#i-${ICONS[theme]}`);
    onChange();
  };
  const current = () => (ORDER.includes(settings.get("theme")) ? settings.get("theme") : "auto");
  button.addEventListener("click", () => {
    const next = ORDER[(ORDER.indexOf(current()) + 1) % ORDER.length];
    settings.set("theme", next);
    apply(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
  apply(current());
}
