// What is wrong with the layout of a page: a page wider than its window, pictures that are empty or too small, labels that
// are cut off, too small or on each other. Called by look.html (the report) and by live.py (the live page).
function findFaults(view) {
  const wrong = [];
  const box = (of) => of.getBoundingClientRect();
  const wide = view.documentElement;
  if (wide.scrollWidth > wide.clientWidth + 1) wrong.push(`the page is ${wide.scrollWidth} wide in ${wide.clientWidth}`);
  const pictures = [...view.querySelectorAll("svg[role=img]")];
  for (const picture of pictures) {
    const name = picture.closest("figure")?.querySelector("b")?.textContent ?? "?", around = box(picture);
    const shapes = [...picture.querySelectorAll("circle, rect, path:not(.grid)")].filter((it) => it.getTotalLength() > 0);
    if (around.width < 200 || around.height < 80) wrong.push(`${name}: ${around.width} x ${around.height}`);
    if (!shapes.length) wrong.push(`${name}: empty`);
    const texts = [...picture.querySelectorAll("text")].map((it) => [it.textContent, box(it)]);
    for (const [text, at] of texts) {
      if (at.left < around.left - 1 || at.right > around.right + 1 || at.top < around.top - 1 || at.bottom > around.bottom + 1)
        wrong.push(`${name}: "${text}" is cut off`);
      if (at.height < 7) wrong.push(`${name}: "${text}" is ${at.height.toFixed(1)} px tall`);
    }
    texts.forEach(([one, a], n) => texts.slice(n + 1).forEach(([two, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left), down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 2 && down > 3) wrong.push(`${name}: "${one}" lies on "${two}"`);
    }));
  }
  return { wrong, pictures: pictures.length, height: wide.scrollHeight };
}
