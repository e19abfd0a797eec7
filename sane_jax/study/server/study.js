// Keys, and how long a page was really seen. Everything works without it.
"use strict";

const one = (role) => document.querySelector(`[data-role="${role}"]`);

const task = one("task");
if (task) {
  // The time in which the page was seen: from its pictures being there, without hidden windows.
  let seen = 0;
  let since = null;
  const note = () => {
    const now = performance.now();
    if (since !== null) seen += now - since;
    since = document.visibilityState === "visible" ? now : null;
  };
  const ready = [...task.querySelectorAll("img")].map((image) => image.decode().catch(() => {}));
  Promise.all(ready).then(note);
  document.addEventListener("visibilitychange", () => {
    if (since !== null || document.visibilityState === "visible") note();
  });
  // A page that a browser kept and shows again begins anew.
  addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload();
  });

  let sent = false;
  task.addEventListener("submit", (event) => {
    if (sent) {
      event.preventDefault();
      return;
    }
    sent = true;
    if (since !== null) note();
    task.elements.seconds.value = (seen / 1000).toFixed(3);
  });

  const choose = (letter) => {
    const input = document.getElementById(`choose-${letter}`);
    input.checked = true;
    input.focus({ preventScroll: true });
  };
  const keys = { a: "A", 1: "A", ArrowLeft: "A", ArrowUp: "A", b: "B", 2: "B", ArrowRight: "B", ArrowDown: "B" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const letter = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    const scrolls = event.key === "ArrowUp" || event.key === "ArrowDown";
    if (letter && !(scrolls && event.target.type !== "radio")) {
      event.preventDefault();
      choose(letter);
    } else if (event.key === "Enter" && !event.target.closest("a, button")) {
      event.preventDefault();
      if (!event.repeat) task.requestSubmit(); // which asks for a choice where there is none
    }
  });
  if (matchMedia("(hover: hover)").matches) one("keys").hidden = false;
}

const next = one("next");
if (next) {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.repeat && !event.target.closest("a, button")) next.click();
  });
}

// Live regions speak when they change, and this one is new on each page.
const progress = document.getElementById("progress");
if (progress) {
  const text = progress.textContent;
  progress.textContent = "";
  requestAnimationFrame(() => { progress.textContent = text; });
}

const copy = one("copy");
if (copy && navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    const link = document.getElementById("link");
    link.select();
    try {
      await navigator.clipboard.writeText(link.value);
      one("copied").textContent = "Copied.";
    } catch {
      one("copied").textContent = "Select the link and copy it.";
    }
  });
}
