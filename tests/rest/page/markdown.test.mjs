import assert from "node:assert/strict";
import { test } from "node:test";

import { parse } from "../../../rest/page/modules/markdown.js";

/** A tree as a line: `p(text,strong(x))`. */
function line(nodes) {
  return nodes.map((node) => (typeof node === "string" ? node : `${node.tag}(${line(node.children)})`)).join(",");
}
const md = (text) => line(parse(text));

test("emphasis nests and unfinished marks stay as they are", () => {
  assert.equal(md("a **b *c* d** e"), "p(a ,strong(b ,em(c), d), e)");
  assert.equal(md("2 * 3 * 4 and **open"), "p(2 * 3 * 4 and **open)");
  assert.equal(md("snake_case_name and _em_"), "p(snake_case_name and ,em(em))");
  assert.equal(md("***both***"), "p(strong(em(both)))");
  assert.equal(md("~~gone~~ \\*no\\*"), "p(del(gone), *no*)");
});

test("markup is text", () => {
  assert.equal(md("<img src=x onerror=alert(1)> <b>x</b>"), "p(<img src=x onerror=alert(1)> <b>x</b>)");
});

test("links lead only to the web and to mail", () => {
  const [p] = parse("[a](https://a.example/x) [b](javascript:alert(1)) [c](data:text/html,x) [d](mailto:d@e.example)");
  const links = p.children.filter((child) => child.tag === "a");
  assert.deepEqual(
    links.map((link) => link.attributes.href),
    ["https://a.example/x", "mailto:d@e.example"],
  );
  assert.ok(links.every((link) => link.attributes.rel.includes("noopener")));
  assert.ok(line([p]).includes("[b](javascript:alert(1))"));
});

test("a bare address is a link without the full stop behind it", () => {
  const [p] = parse("See https://a.example/b?c=d, and https://e.example.");
  assert.deepEqual(
    p.children.filter((child) => child.tag).map((child) => child.attributes.href),
    ["https://a.example/b?c=d", "https://e.example"],
  );
});

test("code keeps what is in it, and an open fence goes to the end", () => {
  assert.equal(md("`a *b*` ``c`d``"), "p(code(a *b*), ,code(c`d))");
  const [pre] = parse("```js\nconst a = **1**;\n\n<b>");
  assert.equal(pre.tag, "pre");
  assert.equal(pre.children[0].children[0], "const a = **1**;\n\n<b>");
  assert.equal(pre.children[0].attributes["data-language"], "js");
  assert.equal(md("```\na\n```\nb"), "pre(code(a)),p(b)");
});

test("lists nest, count from where they start, and end at a paragraph", () => {
  assert.equal(md("- a\n- b\n  - c\n- d"), "ul(li(a),li(b,ul(li(c))),li(d))");
  const [list] = parse("3. x\n4. y");
  assert.equal(list.attributes.start, 3);
  assert.equal(md("1. a\n\n2. b\n\nafter"), "ol(li(a),li(b)),p(after)");
  assert.equal(md("* a\n   more\n\ntext"), "ul(li(a,br(),more)),p(text)");
});

test("headings stand below those of the page", () => {
  assert.equal(md("# One\n## Two ##\n#no"), "h3(One),h4(Two),p(#no)");
});

test("quotes, rules and tables", () => {
  assert.equal(md("> a\n> - b"), "blockquote(p(a),ul(li(b)))");
  assert.equal(md("a\n\n---\n\nb"), "p(a),hr(),p(b)");
  assert.equal(
    md("| a | b |\n|---|:-:|\n| 1 | *2* |"),
    "div(table(thead(tr(th(a),th(b))),tbody(tr(td(1),td(em(2))))))",
  );
  assert.equal(md("a | b\nno table"), "p(a | b,br(),no table)");
});

test("hostile texts take little time", () => {
  const started = performance.now();
  for (const text of [
    "*".repeat(20_000),
    "[".repeat(20_000),
    "`".repeat(20_000),
    "**a ".repeat(5_000),
    "> ".repeat(5_000),
    "- ".repeat(5_000),
    "_a".repeat(10_000),
    "[a](".repeat(5_000),
    "|".repeat(20_000),
    `${" ".repeat(20_000)}x`,
    "https://".repeat(3_000),
    "#".repeat(20_000),
    "-".repeat(20_000),
    "- - ".repeat(4_000),
  ])
    parse(text);
  assert.ok(performance.now() - started < 4_000, `${performance.now() - started} ms`);
});

test("every prefix of an answer can be shown while it grows", () => {
  const text =
    "# A\n\n1. **b** `c`\n   - d\n\n```py\nx = 1\n```\n\n| a | b |\n|---|---|\n| 1 | [l](https://a.example) |\n> q";
  for (let end = 0; end <= text.length; end += 1) assert.ok(Array.isArray(parse(text.slice(0, end))));
});
