/* What the pictures are painted with: colours, a canvas in a box that scrolls, text, and a block as a cell. */

const COLOURS = 9;

/* Colours come from the style sheet, so that light and dark need no code. */
const ink = {
  read() {
    const style = getComputedStyle(document.documentElement), probe = document.createElement("span");
    document.body.append(probe);
    const colour = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
    for (const name of ["card", "sunk", "ink", "quiet", "line", "edge", "cached", "accent", "prefill", "decode", "again", "preempted"]) this[name] = colour(name);
    this.sequences = Array.from({ length: COLOURS }, (_, i) => colour("s" + i));
    this.stamps = new Map();
    this.sans = style.getPropertyValue("--sans");
    probe.remove();
  },
  of(id) { return this.sequences[id % COLOURS]; },
  /* black or white, whichever is read more easily on a colour */
  on(colour) {
    const [r, g, b] = colour.match(/[\d.]+/g).map(Number);
    return .299 * r + .587 * g + .114 * b > 150 ? "#111" : "#fff";
  },
};

/* A canvas in a box that scrolls. Only what is seen is painted. */
class View {
  constructor(id, paint, find) {
    this.box = document.getElementById(id);
    this.canvas = this.box.appendChild(document.createElement("canvas"));
    this.extent = this.box.appendChild(document.createElement("div"));
    this.extent.className = "extent";
    this.context = this.canvas.getContext("2d");
    this.paint = paint;
    this.find = find;  /* (x, y) in the picture -> {key, lines, sequences, block, frame}, or null */
    /* asking for its size at each step would have the browser lay out the page again */
    new ResizeObserver(() => { this.measure(); this.draw(); }).observe(this.box);
    this.box.addEventListener("scroll", () => { this.measure(); this.draw(); });
    this.box.addEventListener("pointermove", (event) => hover(this, event));
    this.box.addEventListener("pointerleave", () => hover(null));
    this.box.addEventListener("click", (event) => choose(this.at(event)));
  }
  at(event) {
    const edge = this.box.getBoundingClientRect();
    return this.find?.(event.clientX - edge.left + this.box.scrollLeft, event.clientY - edge.top + this.box.scrollTop, this) ?? null;
  }
  measure() {
    const { clientWidth: width, clientHeight: height, scrollLeft: left, scrollTop: top } = this.box;
    Object.assign(this, { width, height, left, top });
  }
  /* The size of the whole picture; the box shows a part of it. */
  resize(width, height) {
    if (this.size?.[0] === width && this.size[1] === height) return;
    this.size = [width, height];
    this.extent.style.width = width + "px";
    this.extent.style.height = height + "px";
  }
  draw() {
    const { context, width, height, left, top } = this, scale = window.devicePixelRatio || 1;
    if (!width || !height || !scene.state) return;
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
      this.canvas.style.width = width + "px";
      this.canvas.style.height = height + "px";
    }
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.textBaseline = "middle";
    this.paint(context, { width, height, left, top }, this);
    context.globalAlpha = 1;
  }
}

function text(context, words, x, y, { size = 11, colour = ink.ink, align = "left", weight = 400, most } = {}) {
  context.font = `${weight} ${size}px ${ink.sans}`;
  context.fillStyle = colour;
  context.textAlign = align;
  if (most && context.measureText(words).width > most) {
    while (words.length > 1 && context.measureText(words + "…").width > most) words = words.slice(0, -1);
    words += "…";
  }
  context.fillText(words, x, y);
}

/* A cell that nobody holds, drawn once for each size: a pool has thousands. */
function idle(context, x, y, width, height, isCached) {
  const key = `${width} ${height} ${isCached}`, scale = window.devicePixelRatio || 1;
  if (!ink.stamps.has(key)) {
    const stamp = document.createElement("canvas"), inside = stamp.getContext("2d");
    stamp.width = Math.ceil(width * scale);
    stamp.height = Math.ceil(height * scale);
    inside.scale(scale, scale);
    inside.strokeStyle = inside.fillStyle = isCached ? ink.cached : width < 6 ? ink.line : ink.edge;
    if (width < 6) inside.fillRect(0, 0, width, height);
    else inside.strokeRect(.5, .5, width - 1, height - 1);
    if (isCached && width >= 6) for (let at = -height; at < width; at += 4) { inside.moveTo(at, height); inside.lineTo(at + height, 0); }
    inside.stroke();
    ink.stamps.set(key, stamp);
  }
  context.drawImage(ink.stamps.get(key), x, y, width, height);
}

/* One block as a cell: free, cached, or held; filled as far as it holds tokens. */
function cell(context, x, y, width, height, { colour, share = 1, owners = 1, label, isCached, isFresh, isPale }) {
  context.globalAlpha = isPale ? .2 : 1;
  if (!colour) idle(context, x, y, width, height, isCached);
  else {
    context.fillStyle = colour;
    if (share < 1) {
      context.globalAlpha *= .25;
      context.fillRect(x, y, width, height);
      context.globalAlpha = isPale ? .2 : 1;
    }
    context.fillRect(x, y, width * share, height);
    if (owners > 1) {
      context.strokeStyle = ink.ink;
      context.lineWidth = 1.5;
      if (width >= 9) context.strokeRect(x + .75, y + .75, width - 1.5, height - 1.5);
    }
  }
  if (label) {
    const dark = share >= .5 && colour ? ink.on(colour) : ink.ink;
    text(context, label, x + width / 2, y + height / 2 + .5, { size: Math.min(11, height * .72), colour: dark, align: "center", weight: owners > 1 ? 600 : 400 });
  } else if (owners > 1 && width >= 4 && width < 26) {
    const dot = Math.max(2, width / 3);
    context.fillStyle = colour ? ink.on(colour) : ink.ink;
    context.fillRect(x + (width - dot) / 2, y + (height - dot) / 2, dot, dot);
  }
  if (isFresh) {
    context.strokeStyle = ink.accent;
    context.lineWidth = 2;
    context.strokeRect(x - .5, y - .5, width + 1, height + 1);
  }
  context.globalAlpha = 1;
}
