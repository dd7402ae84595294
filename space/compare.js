// The view of before and after. gradio runs this once, with `element`, in which comparisons come and go.

const parts = (node) => {
  const compare = node.closest?.(".compare");
  return compare && {
    compare,
    frame: compare.querySelector(".frame"),
    stage: compare.querySelector(".stage"),
    pair: compare.querySelector(".pair"),
    divider: compare.querySelector("input[type=range]"),
  };
};

// The divider stands still in the frame while the pictures move below it.
const place = ({ frame, stage, pair, divider }) => {
  frame.style.setProperty("--line", divider.value + "%");
  const at = (stage.scrollLeft + (stage.clientWidth * divider.value) / 100) / pair.clientWidth;
  pair.style.setProperty("--at", 100 * at + "%");
};

const scaleOf = ({ compare, pair }) => pair.clientWidth / parseFloat(compare.style.getPropertyValue("--width"));

// Magnify so that what is at (x, y) of the window stays there; "fit" shows all of the picture.
const zoom = (view, to, x, y) => {
  const { compare, stage, pair } = view;
  const frame = stage.getBoundingClientRect(), before = pair.getBoundingClientRect();
  x ??= frame.left + frame.width / 2;
  y ??= frame.top + frame.height / 2;
  const across = (x - before.left) / before.width, down = (y - before.top) / before.height;
  compare.classList.toggle("fit", to === "fit");
  if (to !== "fit") compare.style.setProperty("--zoom", to);
  compare.classList.toggle("pixels", scaleOf(view) >= 2 && to !== "fit");
  for (const radio of compare.querySelectorAll(".zoom input")) radio.checked = radio.value === String(to);
  const after = pair.getBoundingClientRect();
  stage.scrollLeft += after.left + across * after.width - x;
  stage.scrollTop += after.top + down * after.height - y;
  place(view);
};

element.addEventListener("input", ({ target }) => {
  const view = parts(target);
  if (!view) return;
  if (target === view.divider) place(view);
  else if (target.closest(".zoom")) zoom(view, target.value === "fit" ? "fit" : Number(target.value));
});
element.addEventListener("scroll", ({ target }) => parts(target) && place(parts(target)), true);
new ResizeObserver(() => element.querySelectorAll(".compare").forEach((one) => place(parts(one)))).observe(element);

// A mouse drags the picture where there is more of it than is seen, and the divider where there is not.
element.addEventListener("pointerdown", (start) => {
  const stage = start.target.closest(".stage");
  if (!stage || start.pointerType !== "mouse" || start.button) return;
  start.preventDefault();
  stage.focus({ preventScroll: true });
  const view = parts(stage), { scrollLeft, scrollTop } = stage;
  const pans = stage.scrollWidth > stage.clientWidth + 1 || stage.scrollHeight > stage.clientHeight + 1;
  const move = (now) => {
    if (pans) stage.scrollTo(scrollLeft + start.clientX - now.clientX, scrollTop + start.clientY - now.clientY);
    else {
      const { left, width } = stage.getBoundingClientRect();
      view.divider.value = (100 * (now.clientX - left)) / width;
      place(view);
    }
  };
  if (!pans) move(start);
  addEventListener("pointermove", move);
  addEventListener("pointerup", () => removeEventListener("pointermove", move), { once: true });
});

// Twice: larger, or all of it again.
element.addEventListener("dblclick", ({ target, clientX, clientY }) => {
  const stage = target.closest(".stage");
  if (!stage) return;
  const view = parts(stage);
  zoom(view, view.compare.classList.contains("fit") ? 2 * scaleOf(view) : "fit", clientX, clientY);
});

// Two fingers, on a touchscreen and on a touchpad. One finger scrolls without our help.
let pinch = null;
const between = ([a, b]) => ({
  distance: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY),
  x: (a.clientX + b.clientX) / 2,
  y: (a.clientY + b.clientY) / 2,
});
const pinched = (view, scale, x, y) => {
  const { compare, frame } = view;
  const width = parseFloat(compare.style.getPropertyValue("--width")), ratio = compare.style.getPropertyValue("--ratio");
  const fit = Math.min(frame.parentNode.clientWidth, 0.75 * innerHeight * ratio) / width;
  zoom(view, scale <= fit ? "fit" : Math.min(scale, 16), x, y);
};
element.addEventListener("touchstart", ({ target, touches }) => {
  const stage = target.closest(".stage");
  pinch = stage && touches.length === 2 ? { view: parts(stage), from: between(touches) } : null;
  if (pinch) pinch.scale = scaleOf(pinch.view);
}, { passive: true });
element.addEventListener("touchmove", (event) => {
  if (!pinch || event.touches.length !== 2) return;
  event.preventDefault();
  const { distance, x, y } = between(event.touches);
  pinched(pinch.view, (pinch.scale * distance) / pinch.from.distance, x, y);
}, { passive: false });
element.addEventListener("wheel", (event) => {
  const stage = event.target.closest(".stage");
  if (!stage || !event.ctrlKey) return;
  event.preventDefault();
  const view = parts(stage);
  pinched(view, scaleOf(view) * Math.exp(-event.deltaY / 200), event.clientX, event.clientY);
}, { passive: false });
