"use strict";
(() => {
  const { Card, part, parts } = SaneCard;
  // Beyond this many cards a page draws only what is near the window, and drops what has left it.
  const FEW = 24;

  // ---- the page --------------------------------------------------------------------------------

  function watch(cards) {
    const byRoot = new Map(cards.map((card) => [card.root, card]));
    const few = cards.length <= FEW;
    document.body.classList.toggle("lazy", !few);
    const near = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          const card = byRoot.get(entry.target);
          if (entry.isIntersecting) card.open();
          else if (!few) card.close();
        }
      },
      { rootMargin: "600px 0px" },
    );
    for (const card of cards) near.observe(card.root);
    if (few) {
      // Print and fast scrolling then find them drawn.
      const idle = window.requestIdleCallback ?? ((run) => setTimeout(run, 50));
      const rest = [...cards];
      const next = () => {
        const card = rest.shift();
        if (card) card.open().then(() => idle(next));
      };
      idle(next);
    }

    const items = new Map(parts(document, "index-item").map((item) => [item.dataset.pair, item]));
    const current = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          const link = items.get(entry.target.dataset.pair)?.querySelector("a");
          if (entry.isIntersecting) link?.setAttribute("aria-current", "true");
          else link?.removeAttribute("aria-current");
        }
      },
      { rootMargin: "-30% 0px -65% 0px" },
    );
    if (items.size) for (const card of cards) current.observe(card.root);
  }

  /** Filter and order, of the index and of the cards alike. */
  function indexControls(cards) {
    const list = part(document, "index-list");
    if (!list) return;
    const items = parts(list, "index-item");
    const roots = new Map(cards.map((card) => [card.root.dataset.pair, card.root]));
    const filter = part(document, "filter");
    const sort = part(document, "sort");
    const count = part(document, "index-count");
    const none = part(document, "no-matches");
    const given = (a, b) => a.dataset.pair - b.dataset.pair;
    const score = (item) => (item.dataset.score === "" ? null : Number(item.dataset.score));
    const byScore = (sign) => (a, b) => {
      const [x, y] = [score(a), score(b)];
      if (x === null || y === null) return (x === null) - (y === null) || given(a, b); // last
      return sign * (x - y) || given(a, b);
    };
    const orders = {
      given,
      high: byScore(-1),
      low: byScore(1),
      name: (a, b) =>
        a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }) || given(a, b),
    };
    filter.addEventListener("input", () => {
      const text = filter.value.trim().toLowerCase();
      let shown = 0;
      for (const item of items) {
        const hide = !item.dataset.search.toLowerCase().includes(text);
        item.hidden = roots.get(item.dataset.pair).hidden = hide;
        shown += !hide;
      }
      count.textContent =
        shown === items.length ? `${shown} pairs` : `${shown} of ${items.length} pairs`;
      none.hidden = shown > 0;
    });
    sort.addEventListener("change", () => {
      for (const item of [...items].sort(orders[sort.value])) {
        list.append(item);
        none.before(roots.get(item.dataset.pair));
      }
    });
  }

  function printing() {
    let opened = [];
    window.addEventListener("beforeprint", () => {
      opened = [...document.querySelectorAll("details:not([open])")];
      for (const details of opened) details.open = true;
    });
    window.addEventListener("afterprint", () => {
      for (const details of opened) details.open = false;
    });
  }

  document.documentElement.classList.add("scripted"); // what only a script can do may now show
  const cards = parts(document, "card").map((root) => new Card(root));
  watch(cards);
  indexControls(cards);
  printing();
})();
