// What is hard to read: each visible text whose contrast with what is behind it is below AA.
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (c) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = c;
    canvas.fillRect(0, 0, 1, 1);
    const d = canvas.getImageData(0, 0, 1, 1).data;
    return [d[0], d[1], d[2], d[3] / 255];
  };
  const lum = ([r, g, b]) => {
    const f = (v) => {
      v /= 255;
      return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    };
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const over = (t, u) => {
    const a = t[3];
    return [0, 1, 2].map((i) => t[i] * a + u[i] * (1 - a)).concat(1);
  };
  const back = (e) => {
    const layers = [];
    for (let n = e; n; n = n.parentElement) {
      const c = rgb(getComputedStyle(n).backgroundColor);
      if (c[3] > 0) layers.push(c);
      if (c[3] >= 1) break;
    }
    let base = [255, 255, 255, 1];
    for (const l of layers.reverse()) base = over(l, base);
    return base;
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const t = walker.currentNode;
    const e = t.parentElement;
    if (
      !t.data.trim() ||
      !e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) ||
      e.closest(".visually-hidden,noscript,.skip,:disabled,option,svg")
    )
      continue;
    const s = getComputedStyle(e);
    const bg = back(e);
    const fg = over(rgb(s.color), bg);
    const a = lum(fg),
      b = lum(bg);
    const r = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const big = parseFloat(s.fontSize) >= 24;
    if (r < (big ? 3 : 4.5)) bad.push(`${r.toFixed(2)} ${t.data.trim().slice(0, 40)} .${e.className}`);
  }
  return bad;
})();
