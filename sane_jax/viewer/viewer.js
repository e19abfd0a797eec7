"use strict";
(() => {
  const { Activation, Card, NO_CELL, NO_ERROR, NO_VALUE, centersOf, format, part, parts, unpack } =
    SaneCard;
  const PAGE_GRID = 14; // as in ops/resampling.py
  const POLL = 350; // ms between questions how far a task is
  const status = JSON.parse(document.getElementById("status").textContent);
  const token = document.querySelector('meta[name="form-token"]').content;
  const views = new Map(status.views.map((view) => [view.key, view]));
  const body = document.body;
  const at = (role) => part(body, role);

  // ---- what is shown, all of it in the address -------------------------------------------------

  const DEFAULTS = {
    q: "", m: "", vs: "", view: status.view, mode: "fixed", show: "saliency", opacity: "80",
    overlay: "1", search: "", page: "1",
  };
  let state = { ...DEFAULTS };
  let turn = 0; // of what is being shown: answers to earlier turns are dropped

  function readAddress() {
    const given = new URLSearchParams(location.search);
    const read = {};
    for (const name of Object.keys(DEFAULTS)) read[name] = given.get(name) ?? DEFAULTS[name];
    if (!views.has(read.view)) read.view = DEFAULTS.view;
    if (!["fixed", "both"].includes(read.mode)) read.mode = "fixed";
    if (!["saliency", "sure", "error"].includes(read.show)) read.show = "saliency";
    const opacity = Number(read.opacity);
    read.opacity = opacity >= 0 && opacity <= 100 ? String(Math.round(opacity)) : "80";
    if (read.overlay !== "0") read.overlay = "1";
    if (!(Number(read.page) >= 1)) read.page = "1";
    return read;
  }

  function address(wanted) {
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries(wanted)) {
      if (value !== DEFAULTS[name]) parameters.set(name, value);
    }
    const text = parameters.toString();
    return `${location.pathname}${text ? `?${text}` : ""}`;
  }

  /** Shows another state; `quietly` leaves no step for the back button. */
  function go(changes, { quietly = false, draw = true } = {}) {
    state = { ...state, ...changes };
    history[quietly ? "replaceState" : "pushState"](null, "", address(state));
    if (draw) show();
  }

  // ---- asking ----------------------------------------------------------------------------------

  class Refused extends Error {
    constructor(code, message) {
      super(message);
      this.code = code;
    }
  }

  async function ask(path, parameters = {}, options = {}) {
    const text = new URLSearchParams(parameters).toString();
    let response;
    try {
      response = await fetch(`/api/${path}${text ? `?${text}` : ""}`, options);
    } catch {
      throw new Refused(0, "The server does not answer: it may have ended, or the network is down.");
    }
    const data = await response.json().catch(() => ({}));
    if (!response.ok) throw new Refused(response.status, data.detail ?? `Answer ${response.status}.`);
    return data;
  }

  const change = (path, parameters, method = "POST", content = undefined) =>
    ask(path, parameters, {
      method,
      body: content,
      headers: { "x-form-token": token, "content-type": "application/octet-stream" },
    });

  function notify(text) {
    const notice = make("div", { className: "notice fault", role: "alert" }, make("p", {}, text));
    const close = make("button", { type: "button" }, "Dismiss");
    close.addEventListener("click", () => notice.remove());
    notice.append(close);
    at("notices").replaceChildren(notice);
  }

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "className") element.className = value;
      else if (name === "role" || name.includes("-")) element.setAttribute(name, value);
      else element[name] = value;
    }
    element.append(...children);
    return element;
  }

  // By its version it is the photo that was measured, and no other that took its name since.
  const pictureOf = (image, thumbnail) =>
    `/api/images/${image.key}/picture?version=${image.version || ""}${thumbnail ? "&thumbnail=true" : ""}`;

  function thumbnail(image) {
    const picture = make("img", {
      src: pictureOf(image, true), alt: "", loading: "lazy", decoding: "async",
    });
    const frame = make("span", { className: "thumb" }, picture);
    picture.addEventListener("error", () => frame.classList.add("gone"));
    return frame;
  }

  // ---- the collection --------------------------------------------------------------------------

  async function showStart() {
    const mine = turn;
    document.title = at("home").textContent;
    if (at("search").value !== state.search) at("search").value = state.search;
    const size = status.page_size;
    const page = Math.floor(Number(state.page));
    const found = await ask("images", {
      search: state.search, offset: (page - 1) * size, count: size,
    });
    if (mine !== turn) return;
    const pages = Math.max(1, Math.ceil(found.total / size));
    at("found").textContent = state.search
      ? `${found.total.toLocaleString("en")} of ${status.images.toLocaleString("en")} images`
      : `${status.images.toLocaleString("en")} images` +
        (status.mapped < status.images
          ? `; ${status.mapped.toLocaleString("en")} have maps of their own and come first`
          : "");
    at("grid").replaceChildren(
      ...found.images.map((image) => {
        const link = make("a", { className: "tile", href: address({ ...DEFAULTS, q: image.key }) });
        link.append(thumbnail(image), make("bdi", { title: image.name }, image.name));
        if (!image.mapped) link.append(make("small", {}, "no map of its own"));
        link.dataset.key = image.key;
        link.addEventListener("click", (event) => {
          if (event.metaKey || event.ctrlKey || event.shiftKey) return;
          event.preventDefault();
          go({ q: image.key, m: "", vs: "" });
        });
        return make("li", {}, link);
      }),
    );
    if (!found.images.length) {
      at("grid").replaceChildren(make("li", { className: "quiet" }, "No image’s name holds that."));
    }
    at("pager").hidden = pages === 1;
    at("page-number").textContent = `Page ${page} of ${pages}`;
    at("page-back").disabled = page <= 1;
    at("page-on").disabled = page >= pages;
  }

  // ---- maps --------------------------------------------------------------------------------------

  /** Matrix rows of linear interpolation from cell centres to pixels, ends held. */
  function interpolation(size, cells) {
    return Array.from({ length: size }, (_, i) => {
      const position = Math.min(Math.max(((i + 0.5) * cells) / size - 0.5, 0), cells - 1);
      const low = Math.min(Math.floor(position), Math.max(cells - 2, 0));
      return [low, Math.min(low + 1, cells - 1), position - low];
    });
  }

  /** Values of the pixels, of a map's cells: constant in a cell, or smooth between them. */
  function pixelsOf(map, height, width) {
    const values = map.values.map((value) => value ?? NaN);
    const out = new Float64Array(height * width);
    if (!map.smooth) {
      for (let y = 0, i = 0; y < height; y++) {
        const row = Math.floor((y * map.rows) / height) * map.columns;
        for (let x = 0; x < width; x++, i++) {
          out[i] = values[row + Math.floor((x * map.columns) / width)];
        }
      }
      return out;
    }
    const down = interpolation(height, map.rows);
    const across = interpolation(width, map.columns);
    for (let y = 0, i = 0; y < height; y++) {
      const [top, bottom, v] = down[y];
      for (let x = 0; x < width; x++, i++) {
        const [left, right, u] = across[x];
        const one = values[top * map.columns + left] * (1 - u) + values[top * map.columns + right] * u;
        const two =
          values[bottom * map.columns + left] * (1 - u) + values[bottom * map.columns + right] * u;
        out[i] = one * (1 - v) + two * v;
      }
    }
    return out;
  }

  function labelsOf(rows, columns, height, width) {
    const cells = new Uint16Array(height * width).fill(NO_CELL);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        cells[i] =
          Math.floor((y * rows) / height) * columns + Math.floor((x * columns) / width);
      }
    }
    return cells;
  }

  /** What a card's stage shows of an image: its map where it has one, and its regions. */
  function sideOf(map, grid, [height, width]) {
    const side = { height, width, map: null, error: null, sure: null, cells: null, pixels: null };
    if (map) {
      grid = [Math.min(map.rows, PAGE_GRID), Math.min(map.columns, PAGE_GRID)];
      side.pixels = pixelsOf(map, height, width);
      side.standardError = map.standard_error;
      if (map.sure) {
        const cells = labelsOf(map.rows, map.columns, height, width);
        side.sure = Uint8Array.from(cells, (cell) => map.sure[cell]);
      }
    }
    if (grid) {
      side.cells = labelsOf(grid[0], grid[1], height, width);
      side.centers = centersOf(side.cells, width);
      if (map) {
        const sums = new Float64Array(grid[0] * grid[1]);
        const counts = new Float64Array(sums.length);
        side.pixels.forEach((value, i) => {
          sums[side.cells[i]] += value;
          counts[side.cells[i]] += 1;
        });
        side.cellMeans = [...sums].map((sum, i) => (Number.isFinite(sum) ? sum / counts[i] : null));
        side.cellErrors = [...sums].map(() => map.standard_error);
        if (map.sure) {
          const sure = new Float64Array(sums.length);
          side.cells.forEach((cell, i) => (sure[cell] += side.sure[i]));
          side.cellSure = [...sure].map((sum, i) => sum >= counts[i] / 2);
        }
      }
    }
    return side;
  }

  /** Codes of the pixels, relative to the limits that all images of a card share. */
  function encode(sides) {
    let limit = 0;
    let errorLimit = 0;
    for (const side of sides) {
      for (const value of side.pixels ?? []) if (Math.abs(value) > limit) limit = Math.abs(value);
      errorLimit = Math.max(errorLimit, side.standardError ?? 0);
    }
    for (const side of sides) {
      if (!side.pixels) continue;
      side.map = Int8Array.from(side.pixels, (value) =>
        Number.isFinite(value) ? Math.round((127 * value) / (limit || 1)) : NO_VALUE,
      );
      if (side.standardError !== null && side.standardError !== undefined) {
        const code = Math.round((254 * side.standardError) / (errorLimit || 1));
        side.error = new Uint8Array(side.map.length).fill(Math.min(code, NO_ERROR - 1));
      }
      side.pixels = null;
    }
    return { limit, errorLimit };
  }

  async function unpackCorrespondence(table) {
    if (!table) return null;
    return {
      columns: table.columns, codes: await unpack(table.codes, Int8Array),
      limit: table.limit, least: table.least,
      ofQuery: table.of_query, ofReference: table.of_reference,
    };
  }

  /** The picture's size, when it is there. */
  function sizeOf(image) {
    return image.naturalHeight ? [image.naturalHeight, image.naturalWidth] : [224, 224];
  }

  async function setPicture(stageRoot, image, kicker) {
    const picture = part(stageRoot, "image");
    const figure = stageRoot.closest("figure");
    part(figure, "name").textContent = image.name;
    stageRoot.setAttribute(
      "aria-label",
      `${kicker} ${image.name}: arrow keys go from region to region, Escape leaves`,
    );
    picture.alt = `${kicker}: ${image.name}`;
    const source = pictureOf(image, false);
    if (picture.getAttribute("src") !== source) {
      stageRoot.classList.remove("gone");
      picture.src = source;
    }
    try {
      await picture.decode();
    } catch {
      if (picture.getAttribute("src") === source) stageRoot.classList.add("gone");
    }
    return sizeOf(picture);
  }

  class ViewerCard extends Card {
    constructor(root, onView) {
      super(root);
      for (const role of ["mode", "toggle", "opacity"]) {
        for (const input of parts(root, role)) input.addEventListener("change", onView);
      }
      this.stageOf = new Map(this.stages.map((stage) => [stage.name, stage.root]));
    }

    setView({ show: mode, opacity, overlay }) {
      for (const input of parts(this.root, "mode")) input.checked = input.value === mode;
      part(this.root, "toggle").checked = overlay === "1";
      part(this.root, "opacity").value = opacity;
      this.change({ mode, on: overlay === "1", opacity: Number(opacity) / 100 });
    }

    readView() {
      return {
        show: parts(this.root, "mode").find((input) => input.checked)?.value ?? "saliency",
        overlay: part(this.root, "toggle").checked ? "1" : "0",
        opacity: part(this.root, "opacity").value,
      };
    }

    /** Shows sides by name; `data` holds what belongs to no side. */
    fill(sides, data) {
      this.clear();
      this.clearMarks();
      const limits = encode(Object.values(sides));
      this.hasCorrespondence = Boolean(data.correspondence || data.tables?.a || data.tables?.b);
      this.idle();
      this.take({ ...data, ...limits }, sides, []);
      const known = limits.errorLimit > 0;
      for (const input of parts(this.root, "mode")) {
        input.disabled = input.value !== "saliency" && !known;
      }
      const note = part(this.root, "no-error");
      note.hidden = known;
      note.textContent = known ? "" : data.noError;
      this.root.dataset.drawn = "true";
    }
  }

  /** Why one match rather than another: regions of the query light up in both. */
  class ContrastCard extends ViewerCard {
    partners(stage) {
      const { tables } = this.data;
      const of = (name) => this.stages.find((other) => other.name === name);
      const pairs = ["a", "b"].filter((name) => tables[name]);
      if (stage.name === "query") return pairs.map((name) => [of(name), tables[name]]);
      return pairs.includes(stage.name) ? [[of("query"), tables[stage.name]]] : [];
    }

    valueText(value, error, sure, digits) {
      if (value === null) return ". ";
      const { a, b } = this.data.names;
      const spread = error === null ? "" : ` ± ${format(error, { digits: 2 })}`;
      const speaks = sure === false ? "not sure" : `speaks for ${value > 0 ? a : b}`;
      return `: difference ${format(value, { signed: true, digits })}${spread}, ${speaks}. `;
    }

    drawBar() {
      super.drawBar();
      if (this.view.mode === "error") return;
      const { a, b } = this.data.names;
      const only = this.view.mode === "sure" ? "; only where it is sure" : "";
      part(this.root, "bar-caption").textContent =
        `Difference of effects: warm speaks for ${a}, cool for ${b}${only}`;
    }
  }

  // ---- a query and its matches -------------------------------------------------------------------

  const onView = (event) => {
    const card = event.target.closest("article") === pairCard.root ? pairCard : contrastCard;
    const other = card === pairCard ? contrastCard : pairCard;
    go(card.readView(), { quietly: true, draw: false });
    other.setView(state);
  };
  const pairCard = new ViewerCard(at("pair-card"), onView);
  const contrastCard = new ContrastCard(at("contrast-card"), onView);

  const viewName = (view) => `${view.design}, fill ${view.fill}`;

  function showSwitches() {
    const current = views.get(state.view);
    const canMeasure = !status.no_uploads;
    const offered = [...views.values()].filter((view) => view.held || canMeasure);
    const designs = [...new Set(offered.map((view) => view.design))];
    at("design").replaceChildren(
      ...designs.map((design) => {
        const held = offered.some((view) => view.design === design && view.held);
        return make("option", { value: design, selected: design === current.design },
          held ? design : `${design} · live`);
      }),
    );
    at("fill").replaceChildren(
      ...offered
        .filter((view) => view.design === current.design)
        .map((view) =>
          make("option", { value: view.fill, selected: view.key === current.key },
            view.held ? `${view.fill} · in the index`
              : `${view.fill} · live, ${view.passes.toLocaleString("en")} passes`),
        ),
    );
    for (const input of parts(body, "perturb")) {
      input.disabled = !current.modes.includes(input.value);
      input.checked = input.value === effectiveMode();
    }
    const notes = [];
    if (!current.held) notes.push("Measured live: each image costs encoder passes, once.");
    else if (!canMeasure && offered.length === 1) {
      notes.push(`The index holds this design and fill alone. ${status.no_uploads}`);
    }
    if (!current.modes.includes("both")) {
      notes.push(
        current.held
          ? "Both perturbed: this index was built with mode 'fixed' and can't tell."
          : "Both perturbed: not measured live.",
      );
    }
    at("switch-note").textContent = notes.join(" ");
  }

  const effectiveMode = () =>
    views.get(state.view).modes.includes(state.mode) ? state.mode : "fixed";

  let strip = { q: "", view: "", matches: [] };

  async function showQuery() {
    const mine = turn;
    showSwitches();
    at("query-view").classList.add("busy");
    const { q, view } = state;
    if (task?.image === q && task.view === view) {
      await waitForPhoto(q, view);
      return;
    }
    if (strip.q !== q || strip.view !== view) {
      let found;
      try {
        found = await ask("nearest", { query: q, view, count: status.neighbors });
      } catch (error) {
        if (mine !== turn) return;
        if (error.code === 409 && q.startsWith("u-") && !status.no_uploads) {
          await waitForPhoto(q, view);
          return;
        }
        throw error;
      }
      if (mine !== turn) return;
      strip = { q, view, query: found.query, matches: found.matches };
      at("query-name").textContent = found.query.name;
      at("query-thumb").replaceChildren(thumbnail(found.query));
      document.title = `${found.query.name} · ${at("home").textContent}`;
      at("strip").replaceChildren(...strip.matches.map(stripItem));
    }
    const m = state.m || strip.matches[0]?.key || "";
    markStrip(m);
    if (!m) {
      hideCards();
      at("missing").hidden = true;
      at("query-view").classList.remove("busy");
      notify("The collection has no other image to compare with.");
      return;
    }
    const shownContrast = Boolean(state.vs && state.vs !== m);
    if (shownContrast) await showContrast(mine, m);
    else await showPair(mine, m);
    if (mine === turn) at("query-view").classList.remove("busy");
  }

  /** A photo that was sent has matches only when it is measured. */
  async function waitForPhoto(q, view) {
    if (q.startsWith("u-")) {
      strip = { q: "", view: "", matches: [] };
      at("strip").replaceChildren();
      hideCards();
      at("missing").hidden = true;
      at("query-name").textContent = "your photo";
      at("query-thumb").replaceChildren(thumbnail({ key: q }));
      at("query-view").classList.remove("busy");
      document.title = at("home").textContent;
    }
    await measure(q, view);
  }

  function hideCards() {
    for (const card of [pairCard, contrastCard]) card.root.hidden = true;
  }

  function stripItem(match) {
    const pick = make("button", { type: "button", className: "match-pick", "aria-pressed": "false" });
    pick.append(thumbnail(match));
    pick.setAttribute("aria-label", `${match.name}, score ${match.score.toFixed(3)}`);
    pick.title = match.name;
    pick.addEventListener("click", () => go({ m: match.key, vs: "" }));
    const versus = make("button", {
      type: "button", className: "match-vs", "aria-pressed": "false",
      "aria-label": `Why the selected match rather than ${match.name}`,
    }, "vs");
    versus.addEventListener("click", () => {
      const selected = state.m || strip.matches[0].key;
      if (state.vs === match.key) go({ vs: "" });
      else if (match.key !== selected) go({ m: selected, vs: match.key });
    });
    const line = make("div", { className: "match-line" },
      make("span", {}, match.score.toFixed(3).replace("-", "−")), versus);
    const item = make("li", { className: "match" }, pick, line);
    item.dataset.key = match.key;
    item.dataset.role = "match";
    pick.addEventListener("keydown", (event) => {
      const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
      if (!step) return;
      item[step]?.querySelector(".match-pick").focus();
      event.preventDefault();
    });
    return item;
  }

  function markStrip(m) {
    for (const item of parts(at("strip"), "match")) {
      const { key } = item.dataset;
      const selected = key === m;
      const compared = key === state.vs && state.vs !== m;
      item.classList.toggle("compared", compared);
      item.querySelector(".match-pick").setAttribute("aria-pressed", String(selected));
      const versus = item.querySelector(".match-vs");
      versus.setAttribute("aria-pressed", String(compared));
      versus.disabled = selected;
      if (selected) item.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  }

  function facts(root, rows) {
    part(root, "facts").replaceChildren(
      ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
    );
  }

  const score = (value, signed) =>
    value === null ? "–"
      : (signed && value > 0 ? "+" : "") + value.toFixed(3).replace("-", "−");
  const count = (map) =>
    map?.sure ? `${map.sure.reduce((sum, n) => sum + n, 0)} of ${map.sure.length}` : "–";

  function showMissing(missing) {
    const list = at("missing");
    list.hidden = !missing.length;
    list.replaceChildren(
      ...missing.map((item) => {
        const line = make("li", {}, make("span", {}, item.why));
        if (item.can_measure) {
          const button = make("button", { type: "button" },
            `Measure it (${item.passes.toLocaleString("en")} passes)`);
          button.addEventListener("click", () => measure(item.key, state.view));
          line.append(button);
        }
        return line;
      }),
    );
  }

  async function showPair(mine, m) {
    const began = performance.now();
    const { q, view } = state;
    const mode = effectiveMode();
    const found = await ask("pair", { query: q, reference: m, view, mode });
    const milliseconds = performance.now() - began;
    if (mine !== turn) return;
    const card = pairCard;
    contrastCard.root.hidden = true;
    card.root.hidden = false;
    const [querySize, referenceSize, correspondence] = await Promise.all([
      setPicture(card.stageOf.get("query"), found.query, "Query"),
      setPicture(card.stageOf.get("reference"), found.reference, "Match"),
      unpackCorrespondence(found.correspondence),
    ]);
    if (mine !== turn) return;
    part(card.root, "title-query").textContent = found.query.name;
    part(card.root, "title-reference").textContent = found.reference.name;
    showMissing(found.missing);
    for (const [name, map] of [["query", found.query_map], ["reference", found.reference_map]]) {
      const note = part(card.stageOf.get(name).closest("figure"), "note");
      note.hidden = map !== null;
      note.textContent = map ? "" : "No map: not measured in this view.";
    }
    dropAttributes();
    card.setView(state);
    card.fill(
      {
        query: sideOf(found.query_map, null, querySize),
        reference: sideOf(found.reference_map, null, referenceSize),
      },
      {
        correspondence,
        noError:
          mode === "both"
            ? "No standard errors: an index keeps none of maps with both images perturbed."
            : views.get(view).design === "sliding_window"
              ? "A sliding window draws no masks, so there is no standard error."
              : "No standard errors are kept of this design.",
      },
    );
    part(card.root, "score").textContent = score(found.score);
    const measured = Object.values(found.measured_passes).reduce((sum, n) => sum + n, 0);
    facts(card.root, [
      ["Standard error", format(found.query_map?.standard_error ?? null)],
      ["Cells that are sure", count(found.query_map)],
      ["Encoder passes", String(found.encoder_passes)],
      ...(measured ? [["Measured live with", `${measured.toLocaleString("en")} passes`]] : []),
      ["Answered in", `${Math.round(milliseconds)} ms`],
    ]);
    const settings = { model: status.model, ...views.get(view).settings, mode };
    part(card.root, "settings").replaceChildren(
      ...Object.entries(settings).map(([name, value]) =>
        make("div", {}, make("dt", {}, name), make("dd", {}, value)),
      ),
    );
    card.root.dataset.pair = `${q} ${m} ${view} ${mode}`;
    if (!status.no_attributes && found.query_map) showAttributes(mine, m, found.query).catch(tell(mine));
  }

  async function showContrast(mine, m) {
    const began = performance.now();
    const { q, vs, view } = state;
    const found = await ask("contrast", { query: q, a: m, b: vs, view });
    const milliseconds = performance.now() - began;
    if (mine !== turn) return;
    const card = contrastCard;
    pairCard.root.hidden = true;
    card.root.hidden = false;
    const [querySize, aSize, bSize, a, b] = await Promise.all([
      setPicture(card.stageOf.get("query"), found.query, "Query"),
      setPicture(card.stageOf.get("a"), found.a, "Why"),
      setPicture(card.stageOf.get("b"), found.b, "Rather than"),
      unpackCorrespondence(found.correspondence.a),
      unpackCorrespondence(found.correspondence.b),
    ]);
    if (mine !== turn) return;
    part(card.root, "title-a").textContent = found.a.name;
    part(card.root, "title-b").textContent = found.b.name;
    part(card.root, "contrast-note").textContent =
      "The map on the query is that of the score with the first less that with the second." +
      " Point at a region of the query to see what it matches in both.";
    showMissing(found.missing);
    card.setView(state);
    card.fill(
      {
        query: sideOf(found.query_map, null, querySize),
        a: sideOf(null, found.correspondence.a?.reference_grid ?? null, aSize),
        b: sideOf(null, found.correspondence.b?.reference_grid ?? null, bSize),
      },
      {
        tables: { a, b }, names: { a: found.a.name, b: found.b.name },
        noError: "No standard errors are kept of this difference.",
      },
    );
    part(card.root, "score").textContent = score(found.score, true);
    facts(card.root, [
      ["Score with the first", score(found.scores.a)],
      ["Score with the second", score(found.scores.b)],
      ["Standard error", format(found.query_map?.standard_error ?? null)],
      ["Cells that are sure", count(found.query_map)],
      ["Encoder passes", String(found.encoder_passes)],
      ["Answered in", `${Math.round(milliseconds)} ms`],
    ]);
    card.root.dataset.pair = `${q} ${m} ${vs} ${view}`;
  }

  // ---- attributes --------------------------------------------------------------------------------

  function dropAttributes() {
    pairCard.activation = null;
    at("attribute-figure").hidden = at("ranking").hidden = at("sentence").hidden = true;
    pairCard.root.classList.remove("attributed", "spoken");
  }

  async function showAttributes(mine, m, query) {
    const found = await ask("attributes", { query: state.q, reference: m, view: state.view });
    if (mine !== turn || !found.attributes.length) return;
    const maps = await Promise.all(found.attributes.map((a) => unpack(a.map, Uint8Array)));
    if (mine !== turn) return;
    const [first, second] = found.attributes;
    const card = pairCard;
    at("sentence").textContent = found.sentence.replace(/(\d) %/g, "$1\u00a0%");
    at("sentence").hidden = !found.sentence;
    at("ranking-first").textContent = first.name;
    at("ranking-margin").textContent =
      second && found.margin !== null ? `${found.margin.toFixed(2)} ahead of` : "";
    at("ranking-second").textContent = second ? second.name : "";
    const names = Object.keys(first.terms);
    const capital = (text) => text[0].toUpperCase() + text.slice(1);
    at("ranking-head").replaceChildren(
      ...["Attribute", ...names.map(capital), "Total"].map((name, i, all) =>
        make("th", { scope: "col", className: i === all.length - 1 ? "total" : "" }, name)),
    );
    const shares = found.attributes.flatMap((a) => Object.values(a.shares).map((s) => s ?? 0));
    const low = Math.min(0, ...shares);
    const span = Math.max(0, ...shares) - low || 1;
    at("ranking-body").replaceChildren(
      ...found.attributes.map((a, i) => {
        const row = make("tr", { className: i ? "" : "first" });
        row.dataset.role = "attribute";
        const input = make("input", {
          type: "radio", name: "attribute", value: String(i), checked: i === 0, autocomplete: "off",
          "aria-label": `Show where the query shows ${a.name}`,
        });
        input.dataset.role = "pick";
        const label = make("bdi", {}, a.name);
        label.dataset.role = "attribute-name";
        row.append(make("th", { scope: "row" }, make("label", {}, input, label)));
        for (const name of names) row.append(termCell(name, a, low, span));
        row.append(make("td", { className: "total" }, signed(a.total)));
        return row;
      }),
    );
    const figure = at("attribute-figure");
    part(figure, "activation-image").alt = `Query ${query.name}, green where it shows “${first.name}”`;
    figure.hidden = at("ranking").hidden = false;
    card.root.classList.add("attributed", "spoken");
    card.activation = new Activation(card, figure);
    card.activation.open(
      card.stages.find((stage) => stage.name === "query").side, maps, pictureOf(query, false),
    );
    card.activation.draw();
    card.root.dataset.attributed = `${state.q} ${m}`;
  }

  const signed = (value) =>
    value === null ? "–" : (value > 0 ? "+" : "") + value.toFixed(2).replace("-", "−");

  function termCell(name, attribute, low, span) {
    const value = attribute.shares[name] ?? 0;
    const svg = (tag, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [key, text] of Object.entries(attributes)) element.setAttribute(key, text);
      return element;
    };
    const bar = svg("svg", {
      class: "share-bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true",
      focusable: "false",
    });
    const zero = (-100 * low) / span;
    bar.append(
      svg("rect", {
        class: value < 0 ? "negative" : "positive", x: (100 * (Math.min(value, 0) - low)) / span,
        y: 1, width: (100 * Math.abs(value)) / span, height: 8,
      }),
      svg("line", { class: "zero", x1: zero, x2: zero, y1: 0, y2: 10 }),
    );
    return make("td", {},
      make("span", { className: "term", "aria-hidden": "true" }, name), " ",
      make("span", { className: "raw" }, format(attribute.terms[name])), " ",
      make("span", { className: "share" }, signed(attribute.shares[name] ?? null)), bar);
  }

  // ---- photos that are sent, and other designs ---------------------------------------------------

  let task = null; // that is waited for

  async function send(file) {
    if (status.no_uploads) return notify(status.no_uploads);
    if (file.size > status.max_upload) {
      const most = (status.max_upload / (1 << 20)).toLocaleString("en", { maximumFractionDigits: 1 });
      return notify(`At most ${most} MB can be sent; ${file.name} is larger.`);
    }
    try {
      const view = views.get(state.view).held ? state.view : status.view;
      // A lone surrogate in its name is no text to send.
      const name = (file.name.toWellFormed?.() ?? "").slice(0, 300);
      const begun = await change("uploads", { view, name }, "POST", file);
      task = begun;
      go({ q: begun.image, m: "", vs: "", view });
    } catch (error) {
      notify(error.message);
    }
  }

  async function measure(image, view) {
    try {
      if (!task || task.image !== image || task.view !== view) {
        task = await change("measurements", { image, view });
      }
      await follow();
    } catch (error) {
      at("task").hidden = true;
      notify(error.message);
    }
  }

  async function follow() {
    const mine = task;
    const panel = at("task");
    panel.hidden = false;
    let now = mine;
    while (task === mine) {
      at("task-text").textContent =
        now.state === "waiting"
          ? `Waiting: place ${now.place} in the queue`
          : `Measuring live: ${now.done.toLocaleString("en")} of ${now.total.toLocaleString("en")} encoder passes${now.done ? "" : " (the first with a design waits for its compilation)"}`;
      at("task-bar").value = now.total ? now.done / now.total : 0;
      if (["done", "failed", "cancelled"].includes(now.state)) break;
      await new Promise((resume) => setTimeout(resume, POLL));
      if (task !== mine) return;
      now = await ask(`tasks/${mine.task}`);
    }
    if (task !== mine) return;
    task = null;
    panel.hidden = true;
    if (now.state === "done") {
      strip = { q: "", view: "", matches: [] };
      show();
    } else {
      notify(now.state === "failed" ? `It could not be measured: ${now.error}` : "Cancelled.");
      at("query-view").classList.remove("busy");
    }
  }

  function choose(design, fill) {
    const wanted =
      views.get(`${design}~${fill}`) ??
      [...views.values()].find((view) => view.design === design && view.held) ??
      [...views.values()].find((view) => view.design === design);
    task = null;
    at("task").hidden = true;
    go({ view: wanted.key });
    if (!wanted.held) measure(state.q, wanted.key);
  }

  // ---- the page ----------------------------------------------------------------------------------

  const tell = (mine) => (error) => {
    if (mine !== turn) return;
    at("query-view").classList.remove("busy");
    notify(error.message);
    if (!(error instanceof Refused)) console.error(error);
  };

  async function show() {
    const mine = ++turn;
    at("start").hidden = Boolean(state.q);
    at("query-view").hidden = !state.q;
    at("notices").replaceChildren(
      ...status.notices.map((text) => make("p", { className: "notice" }, text)),
    );
    if (task && task.image !== state.q) {
      task = null;
      at("task").hidden = true;
    }
    try {
      await (state.q ? showQuery() : showStart());
    } catch (error) {
      if (state.q && mine === turn) hideCards();
      tell(mine)(error);
    }
    if (mine === turn) body.dataset.shown = address(state);
  }

  async function share() {
    const button = at("share");
    const link = location.href;
    let done = true;
    try {
      await navigator.clipboard.writeText(link);
    } catch {
      // Browsers give the clipboard to https and this machine alone; the old way needs a field.
      const field = make("textarea", { value: link, readOnly: true, "aria-label": "Link" });
      body.append(field);
      field.select();
      done = document.execCommand("copy");
      field.remove();
    }
    button.textContent = done ? "Link copied" : "Copy the address bar";
    setTimeout(() => (button.textContent = "Copy link"), 2000);
  }

  function listen() {
    at("home").addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      go({ ...DEFAULTS, view: state.view });
      at("search").focus({ preventScroll: true });
    });
    at("random").addEventListener("click", async () => {
      try {
        go({ q: (await ask("images/random")).key, m: "", vs: "" });
      } catch (error) {
        notify(error.message);
      }
    });
    at("share").addEventListener("click", share);
    at("send-photo").addEventListener("click", () => at("file").click());
    at("file").addEventListener("change", () => {
      if (at("file").files[0]) send(at("file").files[0]);
      at("file").value = "";
    });
    let typing = 0;
    at("search").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => go({ search: at("search").value, page: "1" }, { quietly: true }), 150);
    });
    at("finder").addEventListener("submit", (event) => event.preventDefault());
    const turnPage = (step) => () => {
      go({ page: String(Math.floor(Number(state.page)) + step) });
      scrollTo(0, 0);
    };
    at("page-back").addEventListener("click", turnPage(-1));
    at("page-on").addEventListener("click", turnPage(1));
    at("design").addEventListener("change", () => choose(at("design").value, views.get(state.view).fill));
    at("fill").addEventListener("change", () => choose(views.get(state.view).design, at("fill").value));
    for (const input of parts(body, "perturb")) {
      input.addEventListener("change", () => go({ mode: input.value, vs: "" }));
    }
    at("task-cancel").addEventListener("click", async () => {
      if (!task) return;
      const { task: name } = task;
      try {
        await change(`tasks/${name}`, {}, "DELETE");
      } catch (error) {
        notify(error.message);
      }
    });
    part(pairCard.root, "swap").addEventListener("click", () =>
      go({ q: state.m || strip.matches[0].key, m: state.q.startsWith("u-") ? "" : state.q, vs: "" }),
    );
    part(contrastCard.root, "swap").addEventListener("click", () =>
      go({ m: state.vs, vs: state.m || strip.matches[0].key }),
    );
    part(contrastCard.root, "end").addEventListener("click", () => go({ vs: "" }));

    const holdsFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    window.addEventListener("dragover", (event) => {
      if (!holdsFile(event)) return;
      event.preventDefault();
      at("veil").hidden = Boolean(status.no_uploads);
    });
    window.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) at("veil").hidden = true;
    });
    window.addEventListener("drop", (event) => {
      if (!holdsFile(event)) return;
      event.preventDefault();
      at("veil").hidden = true;
      if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
    });
    window.addEventListener("popstate", () => {
      state = readAddress();
      show();
    });
  }

  document.documentElement.classList.add("scripted");
  at("send-photo").disabled = Boolean(status.no_uploads);
  at("send-photo").title = status.no_uploads;
  at("drop-hint").textContent = status.no_uploads
    ? status.no_uploads
    : `Or drop a photo of your own anywhere: it is measured (${status.upload_passes.toLocaleString("en")} encoder passes), compared with all images, and kept in the server’s memory alone.`;
  listen();
  state = readAddress();
  show();
})();
