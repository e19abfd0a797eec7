"use strict";
/** An explained pair on a page: its pictures, maps and marks; what pointing at a region shows. */
const SaneCard = (() => {
  const NO_CELL = 0xffff;
  const NO_VALUE = -128;
  const NO_ERROR = 255;
  const VEIL = 178; // of 255: dark enough to point, light enough to see where one is
  const EFFECT = "Effect on the score, averaged over what else is hidden";
  const STEPS = 16; // keyboard steps across an image that has no cells

  const part = (root, role) => root.querySelector(`[data-role="${role}"]`);
  const parts = (root, role) => [...root.querySelectorAll(`[data-role="${role}"]`)];
  const colors = JSON.parse(document.getElementById("colors").textContent);

  // ---- numbers and arrays ----------------------------------------------------------------------

  function format(value, { signed = false, digits = 3 } = {}) {
    if (value === null || !Number.isFinite(value)) return "–";
    const small = value !== 0 && Math.abs(value) < 1e-4;
    const size = Math.abs(value);
    const text = small
      ? size.toExponential(digits - 1).replace("-", "−")
      : String(Number(size.toPrecision(digits)));
    return (value < 0 ? "−" : signed && value > 0 ? "+" : "") + text;
  }

  /** Undoes `_pack` of page.py: base64, deflate, differences. */
  async function unpack(text, Type) {
    if (text === null) return null;
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const codes = new Type(await new Response(stream).arrayBuffer());
    for (let i = 1; i < codes.length; i++) codes[i] += codes[i - 1]; // wraps, as it should
    return codes;
  }

  async function unpackSide(side) {
    const [map, error, cells, sure] = await Promise.all([
      unpack(side.map, Int8Array),
      unpack(side.error, Uint8Array),
      unpack(side.cells, Uint16Array),
      unpack(side.sure, Uint8Array),
    ]);
    return { ...side, map, error, sure, cells, centers: cells && centersOf(cells, side.width) };
  }

  /** The centroid of each cell, as [x, y]. */
  function centersOf(cells, width) {
    const sums = new Map();
    cells.forEach((cell, i) => {
      if (cell === NO_CELL) return;
      const sum = sums.get(cell) ?? [0, 0, 0];
      sum[0] += i % width;
      sum[1] += Math.floor(i / width);
      sum[2] += 1;
      sums.set(cell, sum);
    });
    return new Map([...sums].map(([cell, [x, y, n]]) => [cell, [x / n, y / n]]));
  }

  // ---- one image of a card ---------------------------------------------------------------------

  /** An image with an overlay of its pixels, and marks over both. */
  class Picture {
    constructor(card, root) {
      this.card = card;
      this.root = root;
      this.overlay = part(root, "overlay");
      this.marks = part(root, "marks");
      this.side = null;
    }

    // The marks canvas has the screen's pixels, for thin lines that are sharp on every screen.
    startMarks() {
      const box = this.root.getBoundingClientRect();
      const ratio = window.devicePixelRatio || 1;
      this.marks.width = Math.round(box.width * ratio);
      this.marks.height = Math.round(box.height * ratio);
      return this.marks.getContext("2d");
    }

    clearMarks() {
      this.marks.width = this.marks.height = 0;
      this.root.classList.remove("lit");
      delete this.root.dataset.cell;
      delete this.root.dataset.match;
    }

    outline(cell) {
      const context = this.marks.width ? this.marks.getContext("2d") : this.startMarks();
      const { cells, width, height } = this.side;
      const sx = this.marks.width / width;
      const sy = this.marks.height / height;
      const path = new Path2D();
      const differs = (x, y) =>
        x < 0 || y < 0 || x >= width || y >= height || cells[y * width + x] !== cell;
      const edge = (x0, y0, x1, y1) => {
        path.moveTo(x0 * sx, y0 * sy);
        path.lineTo(x1 * sx, y1 * sy);
      };
      for (let y = 0, i = 0; y < height; y++) {
        for (let x = 0; x < width; x++, i++) {
          if (cells[i] !== cell) continue;
          if (differs(x - 1, y)) edge(x, y, x, y + 1);
          if (differs(x + 1, y)) edge(x + 1, y, x + 1, y + 1);
          if (differs(x, y - 1)) edge(x, y, x + 1, y);
          if (differs(x, y + 1)) edge(x, y + 1, x + 1, y + 1);
        }
      }
      this.stroke(context, path);
    }

    stroke(context, path) {
      const ratio = window.devicePixelRatio || 1;
      context.lineCap = "square";
      // White on black is seen on any picture.
      for (const [color, size] of [["rgb(0 0 0 / 85%)", 4.5], ["#fff", 2]]) {
        context.strokeStyle = color;
        context.lineWidth = size * ratio;
        context.stroke(path);
      }
    }
  }

  /** Where the query shows an attribute: the first, or the runner-up that was picked. */
  class Activation extends Picture {
    constructor(card, figure) {
      super(card, part(figure, "activation-stage"));
      this.figure = figure;
      this.image = part(figure, "activation-image");
      this.alt = this.image.alt;
      this.maps = [];
      this.rows = parts(card.root, "attribute");
      this.picked = 0;
      this.rows.forEach((row, i) => {
        const input = part(row, "pick");
        input.addEventListener("change", () => this.pick(i));
        row.addEventListener("click", (event) => {
          if (!event.target.closest("label") && !getSelection().toString()) input.click();
        });
      });
      this.pick(0);
    }

    nameOf(i) {
      return part(this.rows[i], "attribute-name").textContent;
    }

    pick(i) {
      this.picked = i;
      this.rows.forEach((row, k) => row.classList.toggle("picked", k === i));
      part(this.figure, "activation-name").textContent = this.nameOf(i);
      part(this.figure, "activation-kicker").textContent =
        i === 0 ? "Explained by:" : "Runner-up:";
      this.image.alt = this.alt.replace(`“${this.nameOf(0)}”`, () => `“${this.nameOf(i)}”`);
      if (this.side) this.draw();
    }

    /** Takes the query's side and all maps; the picture that stood here without a script goes. */
    open(side, maps, source) {
      this.side = side;
      this.maps = maps;
      this.image.src = source;
    }

    close() {
      this.side = null;
      this.maps = [];
      this.overlay.width = this.overlay.height = 0;
    }

    draw() {
      const { opacity, on } = this.card.view;
      const { width, height } = this.side;
      const map = this.maps[this.picked];
      this.overlay.width = width;
      this.overlay.height = height;
      this.root.classList.toggle("painted", Boolean(on && opacity > 0));
      if (!on) return;
      const context = this.overlay.getContext("2d");
      const image = context.createImageData(width, height);
      map.forEach((code, i) => {
        if (code === NO_ERROR) return;
        for (let k = 0; k < 3; k++) image.data[4 * i + k] = colors.activation[4 * code + k];
        image.data[4 * i + 3] = Math.round(colors.activation[4 * code + 3] * opacity);
      });
      context.putImageData(image, 0, 0);
    }
  }

  /** An image of the pair, with its saliency map, that can be explored. */
  class Stage extends Picture {
    constructor(card, root) {
      super(card, root);
      this.name = root.dataset.side;
      this.noun = root.dataset.noun ?? this.name; // in the readout
      this.point = null; // [x, y] of the keyboard where there are no cells

      root.addEventListener("pointermove", (event) => {
        this.pointAt(event);
      });
      root.addEventListener("pointerdown", (event) => this.pointAt(event));
      root.addEventListener("pointerleave", (event) => {
        // A lifted finger leaves too, and what it pointed at is to stay for reading.
        if (event.pointerType === "mouse") card.clear();
      });
      root.addEventListener("keydown", (event) => this.onKey(event));
      root.addEventListener("focus", () => {
        if (root.matches(":focus-visible") && !card.active) this.step(0, 0);
      });
      root.addEventListener("blur", () => {
        // A tap on the other image has shown that image's region before this one loses the focus.
        if (card.active?.stage === this) card.clear();
      });
    }

    pointAt(event) {
      if (!this.side) return;
      const box = this.root.getBoundingClientRect();
      const clamp = (value, top) => Math.min(Math.max(Math.floor(value), 0), top - 1);
      const x = clamp(((event.clientX - box.left) / box.width) * this.side.width, this.side.width);
      const y = clamp(((event.clientY - box.top) / box.height) * this.side.height, this.side.height);
      this.select(x, y);
    }

    select(x, y) {
      this.point = [x, y];
      const at = y * this.side.width + x;
      const cell = this.side.cells ? this.side.cells[at] : null;
      this.card.show(this, cell === NO_CELL ? null : cell, [x, y]);
    }

    onKey(event) {
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (event.key === "Escape") {
        this.card.clear();
      } else if (event.key in steps && !event.altKey && !event.ctrlKey && !event.metaKey) {
        this.step(...steps[event.key]);
        event.preventDefault(); // the arrow is spent, the page is not to scroll by it
      }
    }

    /** Moves to the nearest cell within the quarter of the plane that an arrow points to. */
    step(dx, dy) {
      if (!this.side) return;
      const { width, height, centers } = this.side;
      const here = this.card.active?.stage === this ? this.card.active : null;
      if (!centers?.size) {
        const [x, y] = (here && this.point) ?? [width >> 1, height >> 1];
        const stride = Math.max(1, Math.round(Math.max(width, height) / STEPS));
        const clamp = (value, top) => Math.min(Math.max(value, 0), top - 1);
        this.select(clamp(x + dx * stride, width), clamp(y + dy * stride, height));
        return;
      }
      const from = (here?.cell ?? null) === null ? null : centers.get(here.cell);
      const [x, y] = from ?? [width / 2, height / 2];
      let best = null;
      let bestDistance = Infinity;
      for (const [cell, [cx, cy]] of centers) {
        const along = (cx - x) * dx + (cy - y) * dy;
        const across = Math.abs((cx - x) * dy) + Math.abs((cy - y) * dx);
        if (from && (along <= 0 || across > along)) continue;
        const distance = Math.hypot(cx - x, cy - y);
        if (distance < bestDistance - 1e-9) [best, bestDistance] = [cell, distance];
      }
      if (best !== null) this.card.show(this, best, centers.get(best).map(Math.round));
    }

    /** Saliency, standard error and sureness (null: not known) of a cell, or of a pixel where there are no cells. */
    values(cell, [x, y]) {
      if (cell !== null) {
        const { cellMeans, cellErrors, cellSure } = this.side;
        return [cellMeans?.[cell] ?? null, cellErrors?.[cell] ?? null, cellSure?.[cell] ?? null];
      }
      const { limit, errorLimit } = this.card.data;
      const at = y * this.side.width + x;
      const code = this.side.map?.[at] ?? NO_VALUE;
      const error = this.side.error?.[at] ?? NO_ERROR;
      return [
        code === NO_VALUE ? null : (code / 127) * limit,
        error === NO_ERROR ? null : (error / 254) * errorLimit,
        this.side.sure ? Boolean(this.side.sure[at]) : null,
      ];
    }

    draw() {
      const { mode, opacity, on } = this.card.view;
      const { map, error, sure, width, height } = this.side;
      const values = mode === "error" ? error : map;
      this.overlay.width = width;
      this.overlay.height = height;
      this.root.classList.toggle("painted", Boolean(on && values && opacity > 0));
      if (!on || !values) return;
      const context = this.overlay.getContext("2d");
      const image = context.createImageData(width, height);
      const table = mode === "error" ? colors.error : colors.saliency;
      for (let i = 0; i < values.length; i++) {
        if (values[i] === (mode === "error" ? NO_ERROR : NO_VALUE)) continue;
        if (mode === "sure" && !sure?.[i]) continue; // where no error is known nothing is sure
        const row = 4 * (mode === "error" ? values[i] : values[i] + 127);
        for (let k = 0; k < 3; k++) image.data[4 * i + k] = table[row + k];
        image.data[4 * i + 3] = Math.round(table[row + 3] * opacity);
      }
      context.putImageData(image, 0, 0);
    }

    cross([x, y]) {
      const context = this.startMarks();
      const cx = ((x + 0.5) * this.marks.width) / this.side.width;
      const cy = ((y + 0.5) * this.marks.height) / this.side.height;
      const size = 7 * (window.devicePixelRatio || 1);
      const path = new Path2D();
      path.moveTo(cx - size, cy);
      path.lineTo(cx + size, cy);
      path.moveTo(cx, cy - size);
      path.lineTo(cx, cy + size);
      this.stroke(context, path);
    }

    /** Leaves light on what matches (`light` of a cell in [0, 1]) and darkens everything else. */
    illuminate(light) {
      const { cells, width, height } = this.side;
      const veil = new ImageData(width, height);
      const dark = new Map();
      for (let i = 0; i < cells.length; i++) {
        const cell = cells[i];
        if (!dark.has(cell)) {
          dark.set(cell, Math.round(VEIL * (1 - (cell === NO_CELL ? 0 : light(cell)))));
        }
        veil.data[4 * i + 3] = dark.get(cell);
      }
      const small = document.createElement("canvas");
      small.width = width;
      small.height = height;
      small.getContext("2d").putImageData(veil, 0, 0);
      const context = this.startMarks();
      context.imageSmoothingEnabled = false;
      context.drawImage(small, 0, 0, this.marks.width, this.marks.height);
      this.root.classList.add("lit");
    }
  }

  // ---- one pair --------------------------------------------------------------------------------

  class Card {
    constructor(root) {
      this.root = root;
      this.readout = part(root, "readout");
      this.view = { mode: "saliency", opacity: 0.8, on: true };
      this.data = null;
      this.active = null;
      this.wanted = false;
      this.stages = parts(root, "stage").map((stage) => new Stage(this, stage));
      const figure = part(root, "activation");
      this.activation = figure && new Activation(this, figure);
      this.hasCorrespondence = part(root, "no-correspondence") === null;
      this.idle();

      for (const input of parts(root, "mode")) {
        input.addEventListener("change", () => this.change({ mode: input.value }));
      }
      const toggle = part(root, "toggle");
      toggle.addEventListener("change", () => this.change({ on: toggle.checked }));
      const opacity = part(root, "opacity");
      opacity.addEventListener("input", () => this.change({ opacity: opacity.value / 100 }));
      const button = part(root, "copy");
      button?.addEventListener("click", () => copy(part(root, "command"), button));
    }

    async open() {
      this.wanted = true;
      if (this.data) return;
      const data = JSON.parse(part(this.root, "pair-data").textContent);
      const [query, reference] = await Promise.all([
        unpackSide(data.query),
        unpackSide(data.reference),
      ]);
      const matrix = data.correspondence;
      if (matrix) matrix.codes = await unpack(matrix.codes, Int8Array);
      const maps = await Promise.all(data.activations.map((map) => unpack(map, Uint8Array)));
      if (!this.wanted || this.data) return; // it left the window, or was opened twice, meanwhile
      this.take(data, { query, reference }, maps);
    }

    /** Shows unpacked arrays: the sides by name, and the maps of the attributes. */
    take(data, sides, maps) {
      this.data = data;
      for (const stage of this.stages) stage.side = sides[stage.name];
      const source = this.stages.find((stage) => stage.name === "query").root.querySelector("img");
      this.activation?.open(sides.query, maps, source.src);
      if (!this.active) this.idle();
      this.draw();
      this.root.dataset.drawn = "true";
    }

    close() {
      this.wanted = false;
      if (!this.data) return;
      this.clear();
      this.data = null;
      for (const stage of this.stages) {
        stage.side = null;
        stage.overlay.width = stage.overlay.height = 0;
      }
      this.activation?.close();
      delete this.root.dataset.drawn;
    }

    change(view) {
      Object.assign(this.view, view);
      if (this.data) this.draw();
    }

    draw() {
      for (const stage of this.stages) stage.draw();
      this.activation?.draw();
      this.drawBar();
    }

    drawBar() {
      const { mode, opacity, on } = this.view;
      const { limit, errorLimit } = this.data;
      const isError = mode === "error";
      const table = isError ? colors.error : colors.saliency;
      const canvas = part(this.root, "bar-canvas");
      const context = canvas.getContext("2d");
      const image = context.createImageData(255, 1);
      image.data.set(table);
      for (let i = 3; i < image.data.length; i += 4) image.data[i] *= opacity;
      context.putImageData(image, 0, 0);
      const ends = isError
        ? ["0", format(errorLimit / 2), format(errorLimit)]
        : [format(-limit), "0", format(limit, { signed: true })];
      const caption = isError
        ? "Standard error (SE) of the effect, over the draw of masks"
        : mode === "sure"
          ? `${EFFECT}; only where it is sure: not the draw of masks, by 5 % for the whole map`
          : `${EFFECT}: warm raises it, cool lowers it`;
      ["bar-low", "bar-middle", "bar-high"].forEach((role, i) => {
        part(this.root, role).textContent = ends[i];
      });
      part(this.root, "bar-caption").textContent = caption;
      canvas.setAttribute("aria-label", `Colour bar from ${ends[0]} to ${ends[2]}`);
      part(this.root, "bar").classList.toggle("off", !on);
    }

    /** Whether correspondences are there and no region matches any. */
    matchesNothing() {
      if (!this.data) return false;
      const tables = this.stages.flatMap((stage) => this.partners(stage)).map(([, table]) => table);
      return tables.length > 0 && tables.every((table) => !table.ofQuery.some(Boolean));
    }

    idle() {
      const hint = document.createElement("span");
      hint.className = "idle";
      hint.textContent = this.stages.length < 2
        ? "Point at a region of the query, or use the arrow keys on it, to see its value."
        : this.matchesNothing()
        ? "No region matches one of the other image: what hiding them does to the embedding is no more alike than in unrelated photos. Point at a region to see its value."
        : this.hasCorrespondence
        ? "Point at a region of either image, or use the arrow keys on it, to see its value and what it matches in the other."
        : "Point at either image, or use the arrow keys on it, to see values.";
      this.readout.replaceChildren(hint);
    }

    clear() {
      if (!this.active) return;
      this.active = null;
      this.clearMarks();
      this.idle();
    }

    clearMarks() {
      for (const stage of this.stages) stage.clearMarks();
      this.activation?.clearMarks();
    }

    /** Outlines a cell of an image, and of the query in the picture of its attribute too. */
    outline(stage, cell) {
      stage.outline(cell);
      if (stage.name === "query") this.activation?.outline(cell);
    }

    /** Shows a cell (or the pixel at `point`, for cell null) of one image, and what it matches. */
    show(stage, cell, point) {
      if (this.active?.stage === stage && this.active.cell === cell && cell !== null) return;
      this.clearMarks();
      this.active = { stage, cell };
      const [value, error, sure] = stage.values(cell, point);
      const side = stage.noun[0].toUpperCase() + stage.noun.slice(1);
      const pieces = [
        ["strong", cell === null ? `${side} pixel ${point[0]}, ${point[1]}` : `${side} region ${cell}`],
        ["span", this.valueText(value, error, sure, cell === null ? 2 : 3)],
      ];
      if (cell === null) {
        stage.cross(point);
      } else {
        stage.root.dataset.cell = cell;
        this.outline(stage, cell);
        const found = this.partners(stage).map(([other, matrix]) =>
          this.match(stage, other, matrix, cell),
        );
        if (found.length) pieces.push(["span", found.join(" ")]);
      }
      this.write(pieces);
    }

    // A pixel's value comes from 8 bits, which carry two digits; a cell's comes whole.
    valueText(value, error, sure, digits) {
      if (value === null) return ": no value. ";
      const doubt = sure === false ? ", not sure" : "";
      const spread = error === null ? "" : ` ± ${format(error, { digits: 2 })}`;
      return `: effect ${format(value, { signed: true, digits })}${spread}${doubt}. `;
    }

    /** The images that regions of this one match, each with the correspondence of the two. */
    partners(stage) {
      const { correspondence } = this.data;
      const others = this.stages.filter((other) => other !== stage);
      return correspondence ? others.map((other) => [other, correspondence]) : [];
    }

    /** Lights up in the other image what a cell matches; returns what the readout says of it. */
    match(stage, other, matrix, cell) {
      const isQuery = stage.name === "query";
      const { columns, codes, limit, least } = matrix;
      const cosine = (partner) => {
        const code = codes[isQuery ? cell * columns + partner : partner * columns + cell];
        return code === NO_VALUE ? 0 : (code / 127) * limit;
      };
      // The cosine itself, and nothing where chance alone reaches it: any two photos have best matches.
      const slack = limit / 254; // of 8 bits
      other.illuminate((partner) => (cosine(partner) >= least - slack ? cosine(partner) : 0));
      const best = (isQuery ? matrix.ofQuery : matrix.ofReference)[cell];
      const name = other.noun;
      if (!best) return `Matches no ${name} region: no cosine reaches ${format(least, { digits: 2 })}.`;
      other.root.dataset.match = best[0];
      this.outline(other, best[0]);
      const back = (isQuery ? matrix.ofReference : matrix.ofQuery)[best[0]];
      const mutual = back && back[0] === cell ? ", and each is the other’s best" : "";
      return `Best match: ${name} region ${best[0]}, cosine ${format(best[1], { digits: 2 })}${mutual}.`;
    }

    write(pieces) {
      this.readout.replaceChildren(
        ...pieces.map(([tag, text]) => {
          const element = document.createElement(tag);
          element.textContent = text;
          return element;
        }),
      );
    }
  }

  async function copy(source, button) {
    let done = true;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // Some browsers give files no clipboard. The old way needs a selection, which stays for
      // copying by hand should that fail too.
      getSelection().selectAllChildren(source);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Selected";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }

  return { Activation, Card, NO_CELL, NO_ERROR, NO_VALUE, centersOf, format, part, parts, unpack };
})();
