/**
 * Markdown as a language model writes it, to a tree of plain objects `{tag, attributes, children}`; text is strings.
 * `render` makes DOM nodes of a tree. There is no way to write markup: `<b>` stays the three characters it is.
 */

import { h } from "./dom.js";

const MAX_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const SAFE_URL = /^(https?:\/\/|mailto:)/i;
const BARE_URL = /^https?:\/\/[^\s<>"'`]+/i;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const DELIMITERS = [
  ["***", "strong", "em"],
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];

/** The tree of a text; an end that is still being written (an open fence) is taken as it stands. */
export function parse(text) {
  return blocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
}

/** DOM nodes of a tree. */
export function render(tree) {
  return tree.map((node) =>
    typeof node === "string" ? document.createTextNode(node) : h(node.tag, node.attributes, ...render(node.children)),
  );
}

function node(tag, children, attributes = {}) {
  return { tag, attributes, children };
}

// -- blocks -----------------------------------------------------------------------------------------------------------

const READERS = [fence, heading, rule, quote, list, table];

function blocks(lines, depth) {
  const out = [];
  const paragraph = [];
  const flush = () => {
    if (paragraph.length) out.push(node("p", inline(paragraph.splice(0).join("\n").trim())));
  };
  for (let at = 0; at < lines.length;) {
    const found = depth < MAX_DEPTH && READERS.map((read) => read(lines, at, depth)).find(Boolean);
    if (found) {
      flush();
      out.push(found.node);
      at = found.end;
    } else {
      if (lines[at].trim() === "") flush();
      else paragraph.push(lines[at]);
      at += 1;
    }
  }
  flush();
  return out;
}

function fence(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open) return null;
  let end = at + 1;
  while (end < lines.length && !isClosing(lines[end], open[1])) end += 1;
  const code = node("code", [lines.slice(at + 1, end).join("\n")], open[2] ? { "data-language": open[2] } : {});
  return { node: node("pre", [code], { tabindex: "0" }), end: end + 1 };
}

function isClosing(line, opening) {
  const marks = line.trim();
  return marks.length >= opening.length && marks === opening[0].repeat(marks.length);
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  // The page has h1 and h2 of its own; an answer's headings stand below them.
  return found && { node: node(`h${Math.min(found[1].length + 2, 6)}`, inline(found[2])), end: at + 1 };
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? { node: node("hr", []), end: at + 1 } : null;
}

function quote(lines, at, depth) {
  if (!QUOTE.test(lines[at])) return null;
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { node: node("blockquote", blocks(inner, depth + 1)), end };
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first || first[1].length > 3) return null;
  const isOrdered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (item && item[1].length <= first[1].length + 1) {
      if (/\d/.test(item[2]) !== isOrdered || RULE.test(lines[end])) break;
      items.push([item[3]]);
    } else if (lines[end].trim() === "") {
      if (!continues(lines, end, first, isOrdered)) break;
      items.at(-1).push("");
    } else if (item || /^ {2,}/.test(lines[end])) {
      items.at(-1).push(lines[end].replace(/^ {2,4}/, ""));
    } else if (lines[end - 1].trim() !== "" && !startsBlock(lines[end])) {
      items.at(-1).push(lines[end]);
    } else break;
    end += 1;
  }
  const children = items.map((item) => node("li", tight(blocks(item, depth + 1))));
  const start = isOrdered ? parseInt(first[2], 10) : 1;
  return { node: node(isOrdered ? "ol" : "ul", children, start === 1 ? {} : { start }), end };
}

function continues(lines, blank, first, isOrdered) {
  const next = lines[blank + 1];
  if (next === undefined || next.trim() === "") return false;
  const item = ITEM.exec(next);
  return item ? item[1].length > first[1].length + 1 || /\d/.test(item[2]) === isOrdered : /^ {2,}/.test(next);
}

function startsBlock(line) {
  return [FENCE, HEADING, RULE, QUOTE].some((pattern) => pattern.test(line));
}

/** A list item of one paragraph holds its text without one. */
function tight(children) {
  return children[0]?.tag === "p" && !children.slice(1).some((child) => child.tag === "p")
    ? [...children[0].children, ...children.slice(1)]
    : children;
}

function table(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !TABLE_RULE.test(lines[at + 1])) return null;
  if (!lines[at + 1].includes("-") || !lines[at + 1].includes("|")) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const head = node(
    "tr",
    cells(lines[at]).map((cell) => node("th", inline(cell), { scope: "col" })),
  );
  const rows = lines.slice(at + 2, end).map((line) =>
    node(
      "tr",
      cells(line).map((cell) => node("td", inline(cell))),
    ),
  );
  const whole = node("table", [node("thead", [head]), node("tbody", rows)]);
  return { node: node("div", [whole], { class: "table", tabindex: "0" }), end };
}

function cells(line) {
  return line
    .trim()
    .replace(/^\||\|$/g, "")
    .split("|")
    .map((cell) => cell.trim());
}

// -- inside a block ---------------------------------------------------------------------------------------------------

/** The text of a block: code, emphasis, links, line breaks. */
function inline(text, depth = 0) {
  const out = [];
  const absent = new Set(); // delimiters that have no end ahead: each is looked for once, so long texts stay quick
  let plain = "";
  const add = (child) => {
    if (plain) out.push(plain);
    plain = "";
    out.push(child);
  };
  for (let at = 0; at < text.length;) {
    const found = depth < MAX_DEPTH ? span(text, at, depth, absent) : null;
    if (found) {
      add(found.node);
      at = found.end;
    } else if (text[at] === "\\" && PUNCTUATION.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else {
      plain += text[at];
      at += 1;
    }
  }
  if (plain) out.push(plain);
  return out;
}

function span(text, at, depth, absent) {
  switch (text[at]) {
    case "\n":
      return { node: node("br", []), end: at + 1 };
    case "`":
      return code(text, at, absent);
    case "[":
      return link(text, at, depth, absent);
    case "h":
    case "H":
      return bareUrl(text, at);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, depth, absent);
    default:
      return null;
  }
}

function code(text, at, absent) {
  const marks = /^`+/.exec(text.slice(at, at + 16))[0];
  const from = at + marks.length;
  const end = find(text, marks, from, absent);
  if (end < 0) return null;
  return { node: node("code", [text.slice(from, end).replace(/\n/g, " ")]), end: end + marks.length };
}

function emphasis(text, at, depth, absent) {
  for (const [marks, tag, inner] of DELIMITERS) {
    if (!text.startsWith(marks, at)) continue;
    const from = at + marks.length;
    if (/\s/.test(text[from] ?? " ") || (marks[0] === "_" && /\w/.test(text[at - 1] ?? " "))) continue;
    const end = closing(text, marks, from, absent);
    if (end <= from) continue;
    const children = inline(text.slice(from, end), depth + 1);
    return { node: node(tag, inner ? [node(inner, children)] : children), end: end + marks.length };
  }
  return null;
}

function closing(text, marks, from, absent) {
  for (let end = find(text, marks, from, absent), tries = 0; end >= 0 && tries < 50; tries += 1) {
    const isInsideLonger = marks.length === 1 && (text[end + 1] === marks || text[end - 1] === marks);
    const isInsideWord = marks[0] === "_" && /\w/.test(text[end + marks.length] ?? " ");
    if (end > from && !/\s/.test(text[end - 1]) && !isInsideLonger && !isInsideWord) return end;
    end = find(text, marks, end + (isInsideLonger ? 2 : 1), absent);
  }
  return -1;
}

function link(text, at, depth, absent) {
  const middle = find(text, "](", at + 1, absent);
  if (middle < 0) return null;
  const end = text.indexOf(")", middle + 2);
  const address =
    end < 0
      ? ""
      : text
          .slice(middle + 2, end)
          .trim()
          .replace(/\s+".*"$/, "");
  if (!SAFE_URL.test(address) || /\s/.test(address)) return null;
  return { node: anchor(address, inline(text.slice(at + 1, middle), depth + 1)), end: end + 1 };
}

function bareUrl(text, at) {
  if (/\w/.test(text[at - 1] ?? " ")) return null;
  const found = BARE_URL.exec(text.slice(at, at + 2048));
  if (!found) return null;
  const address = found[0].replace(/[.,;:!?)\]*_]+$/, "");
  return { node: anchor(address, [address]), end: at + address.length };
}

function anchor(href, children) {
  return node("a", children, { href, target: "_blank", rel: "noopener noreferrer nofollow" });
}

function find(text, marks, from, absent) {
  if (absent.has(marks)) return -1;
  const at = text.indexOf(marks, from);
  if (at < 0) absent.add(marks);
  return at;
}
