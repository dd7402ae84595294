// What gradio has not: a connection that may break, what keyboard and screen readers need, images from everywhere, and
// the view of before and after.
// It stands before gradio's own scripts, since two of them take what it sets.

// --- Gradio ---

// Its words are in the language of ours.
Object.defineProperty(navigator, "language", { get: () => "en" });

const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// What the server tells of the work comes over a long connection. If that breaks, it is told again what was missed
// (gate.py).
const fetchOnce = window.fetch.bind(window), PATIENCE = 20000;
window.fetch = (what, options) => {
  const address = what.url ?? String(what);
  if (!/\/gradio_api\/(queue\/data\?|heartbeat\/)/.test(address)) return fetchOnce(what, options);
  const { headers, credentials, signal } = what.url ? what : (options ?? {});
  return follow(address, { headers, credentials, signal });
};

async function follow(address, options) {
  const response = await fetchOnce(address, options);
  if (!response.ok) return response;
  let reader = response.body.getReader(), decoder = new TextDecoder(), rest = "", seen = 0;

  const takeUpAgain = async (error) => {
    for (const end = Date.now() + PATIENCE; Date.now() < end && !options.signal?.aborted; ) {
      await sleep(500);
      const more = await fetchOnce(`${address}${address.includes("?") ? "&" : "?"}seen=${seen}`, options).catch(() => null);
      if (more?.ok) {
        [reader, decoder, rest] = [more.body.getReader(), new TextDecoder(), ""];
        return {};
      }
      if (more) break;
    }
    throw error;
  };

  // Only whole events are handed on; of a broken one nothing was seen.
  const pull = async (controller) => {
    for (let events = ""; !events; ) {
      const { done, value } = await reader.read().catch(takeUpAgain);
      if (done) return controller.close();
      rest += value ? decoder.decode(value, { stream: true }) : "";
      const end = rest.lastIndexOf("\n\n") + 2;
      if (end < 2) continue;
      [events, rest] = [rest.slice(0, end), rest.slice(end)];
      seen += events.split("\n\n").length - 1;
      controller.enqueue(new TextEncoder().encode(events));
    }
  };
  const cancel = () => reader.cancel();
  return new Response(new ReadableStream({ pull, cancel }), { status: 200, headers: response.headers });
}

// --- Keyboard and voice ---

// Arrow keys in a list of choices, whose radio buttons gradio gives a name each, and in the tabs.
document.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const list = event.target.closest?.("fieldset, [role=tablist]");
  if (!step || !list || !event.target.matches("[type=radio], [role=tab]")) return;
  const all = [...list.querySelectorAll("[type=radio]:not(:disabled), [role=tab]")];
  const next = all.at((all.indexOf(event.target) + step) % all.length);
  event.preventDefault();
  next.focus();
  next.click();
});

// What has the keyboard may be taken away, or can no longer be pressed: then another in the same place has it.
const CONTROLS = "a[href], button, input, textarea, summary, [tabindex]";
const isThere = (node) => node.isConnected && !node.matches(":disabled") && node.checkVisibility();
let focused = null, byKeys = false;
document.addEventListener("keydown", () => (byKeys = true), true);
document.addEventListener("pointerdown", () => (byKeys = false), true);
document.addEventListener("focusin", ({ target }) => (focused = [target, target.closest("#actions, .block")]));
document.addEventListener("focusout", async ({ target }) => {
  await sleep(0); // it may be about to be taken away
  if (target === focused?.[0] && isThere(target)) focused = null;
});
const keepFocus = () => {
  const [was, place] = focused ?? [];
  if (!byKeys || !place || isThere(was) || ![was, document.body].includes(document.activeElement)) return;
  [...place.querySelectorAll(CONTROLS)].find(isThere)?.focus({ preventScroll: true });
};

// How the work goes is said from a place that is there before its words; otherwise screen readers are silent.
const say = () => {
  const place = document.querySelector(".aloud"), status = document.querySelector("#status");
  const words = status?.querySelector("progress") ? "Restoring." : status?.querySelector(".verdict, .hint")?.textContent;
  if (place && place.textContent !== (words ?? "")) place.textContent = words ?? "";
};

// Lists of choices are called as they are headed, and the picture on a button has no words besides the button's.
const giveNames = () => {
  for (const list of document.querySelectorAll("fieldset:not([aria-label])"))
    list.ariaLabel = list.querySelector("[data-testid=block-info]")?.textContent.trim() ?? "";
  for (const picture of document.querySelectorAll(".examples img:not([alt=''])")) picture.alt = "";
};

new MutationObserver(() => [keepFocus, say, giveNames].forEach((tend) => tend())).observe(document, {
  subtree: true,
  childList: true,
  attributeFilter: ["disabled", "class", "style"],
});

// The chosen image has no words of its own; a format that this browser does not show leaves no broken sign.
for (const kind of ["load", "error"])
  document.addEventListener(kind, ({ target }) => {
    if (!target.closest?.(".upload")) return;
    target.alt ||= "The chosen image";
    target.classList.toggle("unseen", kind === "error");
  }, true);

// --- The work ---

const ddrm = (window.ddrm = {
  // Press a button as soon as it can be pressed, if no other is to be by then.
  async press(id) {
    const latest = (ddrm.pressed = {});
    for (let tries = 0; tries < 200 && ddrm.pressed === latest; tries++, await sleep(50)) {
      const button = document.getElementById(id);
      if (button && !button.disabled) return button.click();
    }
  },
  async showRefusal() {
    await sleep(100);
    document.querySelector("#facts .refusal")?.scrollIntoView({ block: "nearest" });
  },
  // What the result that comes is made with.
  begin(preset, values) {
    ddrm.made = [preset, JSON.stringify(values)];
    ddrm.compareSettings(preset, values);
    document.querySelector("#status").scrollIntoView({ block: innerWidth < 768 ? "start" : "nearest" });
  },
  compareSettings(preset, values) {
    const [before, settings] = ddrm.made ?? [preset, JSON.stringify(values)], note = document.querySelector("#stale p");
    const other = before && before !== preset ? "another preset" : "other settings";
    const same = settings === JSON.stringify(values);
    note.textContent = same ? "" : `This result is of ${other}. Press Restore for a new one.`;
  },
});

// What is pressed to start takes the old result away at once.
document.addEventListener("click", ({ target }) => {
  if (target.closest?.(".start:not(:disabled)")) document.querySelectorAll(".compare").forEach((one) => one.remove());
}, true);

// --- Images from everywhere: dropped, pasted, or at an address ---

const tell = (sentence) => (document.querySelector("#said [role=alert]").textContent = sentence);

async function take(files) {
  const latest = (ddrm.taken = files);
  tell("");
  const tabs = [...document.querySelectorAll("[role=tab]")];
  if (files.length > 1) tabs.find((tab) => tab.textContent.trim() === "Several")?.click();
  for (let tries = 0; tries < 60 && ddrm.taken === latest; tries++, await sleep(50)) {
    const panel = [...document.querySelectorAll("[role=tabpanel]")].find((one) => one.offsetParent);
    const input = panel?.querySelector("input[type=file]");
    const old = panel?.querySelector("[aria-label='Remove Image'], [aria-label=Clear]");
    old?.click();
    if (old || !input || (files.length > 1 && !input.multiple)) continue;
    const transfer = new DataTransfer();
    for (const file of files) transfer.items.add(file);
    input.files = transfer.files;
    return input.dispatchEvent(new Event("change", { bubbles: true }));
  }
}

// Of some formats the browser does not know that they are images, and gradio would refuse them. The server has a better
// sentence for that.
document.addEventListener("change", ({ target }) => {
  if (target.type !== "file") return;
  const transfer = new DataTransfer();
  for (const file of target.files)
    transfer.items.add(file.type.startsWith("image/") ? file : new File([file], file.name, { type: "image/unknown" }));
  target.files = transfer.files;
}, true);

const isAddress = (text) => /^(https?:\/\/|data:image\/)\S+$/.test(text);

// The browser fetches it, not the server.
async function takeAddress(address) {
  if (!isAddress(address)) return tell("The address of an image begins with https://.");
  tell("Fetching the image.");
  try {
    const response = await fetchOnce(address, { credentials: "omit", referrerPolicy: "no-referrer" });
    const blob = await response.blob();
    if (!response.ok) return tell(`That address answers with ${response.status}.`);
    if (!blob.type.startsWith("image/")) return tell("There is no image at that address, but something else.");
    const name = decodeURIComponent(new URL(response.url || address).pathname.split("/").pop()) || "image";
    await take([new File([blob], /\.\w+$/.test(name) ? name : `${name}.${blob.type.slice(6)}`, { type: blob.type })]);
  } catch {
    tell("Your browser may not fetch that image for this page. Save it, and choose the file.");
  }
}

function takeFrom(event, data) {
  const text = (data.getData("text/uri-list") || data.getData("text/plain")).trim();
  if (data.files.length) take([...data.files]);
  else if (isAddress(text)) takeAddress(text);
  if (data.files.length || isAddress(text) || event.type === "drop") event.preventDefault();
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => event.defaultPrevented || takeFrom(event, event.dataTransfer));
document.addEventListener("paste", (event) => {
  const field = event.target.closest?.("input:not([type=radio]), textarea, [contenteditable]");
  const typing = field && !field.closest("#address") && !event.clipboardData.files.length;
  if (!event.defaultPrevented && !typing) takeFrom(event, event.clipboardData);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.closest?.("#address")) takeAddress(event.target.value.trim());
});

// --- The view of before and after, of which several come and go ---

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
// Side by side, both halves of it show the same of their pictures.
const place = ({ compare, frame, stage, pair, divider }) => {
  const aside = compare.classList.contains("aside"), share = aside ? 0 : divider.value / 100;
  frame.style.setProperty("--line", aside ? "50%" : divider.value + "%");
  frame.style.setProperty("--half", stage.clientWidth / 2 + "px");
  pair.style.setProperty("--at", (100 * (stage.scrollLeft + stage.clientWidth * share)) / pair.clientWidth + "%");
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

document.addEventListener("input", ({ target }) => {
  const view = parts(target);
  if (!view) return;
  if (target === view.divider) place(view);
  else if (target.type === "checkbox") {
    view.compare.classList.toggle(target.value, target.checked);
    place(view);
  } else if (target.closest(".zoom")) {
    zoom(view, target.value === "fit" ? "fit" : Number(target.value));
    target.scrollIntoView({ block: "nearest" });
  }
});
document.addEventListener("scroll", ({ target }) => parts(target) && place(parts(target)), true);
addEventListener("resize", () => document.querySelectorAll(".compare").forEach((one) => place(parts(one))));

// A mouse drags the picture where there is more of it than is seen, and the divider where there is not.
document.addEventListener("pointerdown", (start) => {
  const stage = start.target.closest?.(".stage");
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
document.addEventListener("dblclick", ({ target, clientX, clientY }) => {
  const stage = target.closest?.(".stage");
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
document.addEventListener("touchstart", ({ target, touches }) => {
  const stage = target.closest?.(".stage");
  pinch = stage && touches.length === 2 ? { view: parts(stage), from: between(touches) } : null;
  if (pinch) pinch.scale = scaleOf(pinch.view);
}, { passive: true });
document.addEventListener("touchmove", (event) => {
  if (!pinch || event.touches.length !== 2) return;
  event.preventDefault();
  const { distance, x, y } = between(event.touches);
  pinched(pinch.view, (pinch.scale * distance) / pinch.from.distance, x, y);
}, { passive: false });
document.addEventListener("wheel", (event) => {
  const stage = event.target.closest?.(".stage");
  if (!stage || !event.ctrlKey) return;
  event.preventDefault();
  const view = parts(stage);
  pinched(view, scaleOf(view) * Math.exp(-event.deltaY / 200), event.clientX, event.clientY);
}, { passive: false });

// Before, as long as a button is held.
const hold = (event, held) => {
  const button = event.target.closest?.(".hold");
  if (button) button.closest(".compare").classList.toggle("held", held);
};
for (const kind of ["pointerdown", "keydown"])
  document.addEventListener(kind, (event) => {
    if (kind === "pointerdown" || event.key === " " || event.key === "Enter") hold(event, true);
  });
for (const kind of ["pointerup", "pointerout", "pointercancel", "keyup", "focusout"])
  document.addEventListener(kind, (event) => hold(event, false));

document.addEventListener("click", ({ target }) => {
  if (!target.closest?.(".full")) return;
  if (document.fullscreenElement) document.exitFullscreen();
  else target.closest(".compare").requestFullscreen();
});
document.addEventListener("fullscreenchange", ({ target }) => {
  dispatchEvent(new Event("resize"));
  const button = target.querySelector(".full");
  button.textContent = document.fullscreenElement ? "Leave full screen" : "Full screen";
  button.scrollIntoView({ block: "nearest" });
});
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape" && document.fullscreenElement) document.exitFullscreen();
});
