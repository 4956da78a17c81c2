/* Pictures of one frame: memory, block tables, prefix tree. Each is painted from the state of the scene, and says what
   lies under the pointer. */

/* ---- Memory ---- */

const memory = new View("memory", (context, box, view) => {
  const { num_blocks } = data.sizes, count = scene.showsAll ? num_blocks : scene.numShown;
  const side = sideOf(count, box.width, box.height), columns = Math.max(1, Math.floor(box.width / side));
  Object.assign(view, { side, columns, count });
  view.resize(columns * side, Math.ceil(count / columns) * side + 2);
  const first = Math.floor(box.top / side) * columns + 1, last = Math.min(count, (Math.ceil((box.top + box.height) / side) + 1) * columns);
  const size = side - (side > 5 ? 2 : 1);
  for (let block = first; block <= last; block += 1) {
    const x = ((block - 1) % columns) * side + 1, y = Math.floor((block - 1) / columns) * side - box.top + 1;
    cell(context, x, y, size, size, lookOf(block, side >= 13 && side < 28));
    if (side >= 28) numberIn(context, block, x, y, size);
  }
}, (x, y, view) => {
  const block = Math.floor(y / view.side) * view.columns + Math.floor(x / view.side) + 1;
  return x < view.columns * view.side && block >= 1 && block <= view.count ? aboutBlock(block) : null;
});

const LARGEST = 36, SMALLEST = 4;

/* The largest cells of which so many fit; if not even the smallest do, the picture scrolls. */
function sideOf(count, width, height) {
  let side = LARGEST;
  while (side > SMALLEST && Math.floor(width / side) * Math.floor((height - 3) / side) < count) side -= 1;
  return side;
}

/* A large cell has the block's number, and how many sequences share it. */
function numberIn(context, block, x, y, size) {
  const { colour, owners, share, isPale: pale } = lookOf(block, false), dark = colour && share >= .5 ? ink.on(colour) : colour ? ink.ink : ink.quiet;
  context.globalAlpha = pale ? .3 : 1;
  const isShared = owners > 1;
  text(context, String(block), x + size / 2, y + size / 2 - (isShared ? 5 : -.5), { size: 10, colour: dark, align: "center" });
  if (isShared) text(context, "× " + owners, x + size / 2, y + size / 2 + 8, { size: 10, colour: dark, align: "center", weight: 700 });
  context.globalAlpha = 1;
}

/* How a block looks in every picture. Its colour is that of its first owner. */
function lookOf(block, isLabelled) {
  const owners = scene.owners.get(block), isFresh = scene.fresh.has(block);
  if (!owners) return { isCached: scene.state.nodes.has(block), isPale: isPale(block), isFresh };
  const names = new Set(owners.map(([id]) => id)).size;
  return {
    colour: ink.of(owners[0][0]), owners: names, isPale: isPale(block), isFresh, label: isLabelled && names > 1 ? String(names) : "",
    share: Math.max(...owners.map(([id, , place]) => filledOf(scene.state, id, place))) / data.sizes.block_size,
  };
}

function isPale(block) {
  const lit = scene.lit;
  if (!lit) return false;
  if (lit.block) return lit.block !== block;
  return !scene.owners.get(block)?.some(([id]) => lit.sequences.has(id));
}

/* ---- Block tables ---- */

const CHIP = { width: 36, height: 18, row: 24, left: 64, top: 22 };
const tables = new View("tables", (context, box, view) => {
  const rows = view.rows = [...scene.state.tables.keys()].filter((id) => scene.state.tables.get(id)[scene.group].length).sort((a, b) => a - b);
  const longest = Math.max(0, ...rows.map((id) => scene.state.tables.get(id)[scene.group].length));
  view.resize(CHIP.left + longest * CHIP.width + 6, CHIP.top + rows.length * CHIP.row + 4);
  const first = Math.max(0, Math.floor((box.top - CHIP.top) / CHIP.row)), last = Math.min(rows.length, Math.ceil((box.top + box.height) / CHIP.row));
  const from = Math.max(0, Math.floor(box.left / CHIP.width) - 1), to = from + Math.ceil(box.width / CHIP.width) + 2;
  const xOf = (place) => CHIP.left + place * CHIP.width - box.left, yOf = (row) => CHIP.top + row * CHIP.row - box.top;
  for (let row = first; row < last; row += 1) {
    const table = scene.state.tables.get(rows[row])[scene.group], below = row + 1 < rows.length ? scene.state.tables.get(rows[row + 1])[scene.group] : [];
    for (let place = from; place < Math.min(to, table.length); place += 1) {
      const block = table[place], x = xOf(place), y = yOf(row);
      if (!block) { text(context, "·", x + CHIP.width / 2, y + CHIP.height / 2, { colour: ink.quiet, align: "center" }); continue; }
      const look = lookOf(block, false);
      if (scene.lit && !scene.lit.block) look.isPale = !scene.lit.sequences.has(rows[row]);
      if (below[place] === block) {
        context.globalAlpha = look.isPale ? .2 : 1;
        context.fillStyle = look.colour;
        context.fillRect(x + 6, y + CHIP.height - 1, CHIP.width - 15, CHIP.row - CHIP.height + 2);
      }
      cell(context, x, y, CHIP.width - 3, CHIP.height, { ...look, owners: 1, label: String(block) });
    }
  }
  context.fillStyle = ink.card;
  context.fillRect(0, 0, box.width, CHIP.top - 3);
  for (let place = from; place < Math.min(to, longest); place += 1) text(context, String(place), xOf(place) + (CHIP.width - 3) / 2, 9, { size: 10, colour: ink.quiet, align: "center" });
  context.fillStyle = ink.card;
  context.fillRect(0, 0, CHIP.left - 4, box.height);
  for (let row = first; row < last; row += 1) label(context, rows[row], yOf(row) + CHIP.height / 2, CHIP.left - 10);
  context.fillStyle = ink.card;
  context.fillRect(0, 0, CHIP.left - 4, CHIP.top - 3);
}, (x, y, view) => {
  const row = Math.floor((y - CHIP.top) / CHIP.row), id = view.rows[row];
  if (id === undefined || y < CHIP.top) return null;
  const place = Math.floor((x - CHIP.left) / CHIP.width), block = x - view.left > CHIP.left ? scene.state.tables.get(id)[scene.group][place] : 0;
  return block ? aboutBlock(block) : aboutSequence(id);
});

/* A sequence's name with its colour, at the left of a row. */
function label(context, id, y, most) {
  context.globalAlpha = scene.lit && !scene.lit.sequences.has(id) ? .35 : 1;
  context.fillStyle = ink.of(id);
  context.fillRect(0, y - 4, 8, 8);
  text(context, nameOf(id), 13, y, { most: most - 13 });
  context.globalAlpha = 1;
}

/* ---- Prefix tree ---- */

const tree = new View("tree", (context, box, view) => {
  const { places, width, height } = view.layout = layoutOf(scene.state, scene.group);
  const side = view.side = 18, step = side + 8, row = side + 6;
  Object.assign(view, { step, row });
  view.resize(14 + width * step + 90, 6 + height * row);
  for (const [, place] of places) {
    const x = 8 + place.x * step - box.left, y = 4 + place.y * row - box.top;
    if (place.parent) {
      const px = 8 + place.parent.x * step - box.left, py = 4 + place.parent.y * row - box.top;
      context.strokeStyle = ink.edge;
      context.lineWidth = 1.5;
      context.beginPath();
      context.moveTo(px + (py === y ? side : side + 4), py + side / 2);
      context.lineTo(px + side + 4, y + side / 2);
      context.lineTo(x, y + side / 2);
      context.stroke();
    }
    if (x < -step || x > box.width || y < -row || y > box.height) continue;
    if (place.isGone) {
      context.strokeStyle = ink.preempted;
      context.lineWidth = 1;
      context.strokeRect(x + .5, y + .5, side - 1, side - 1);
      text(context, "×", x + side / 2, y + side / 2, { colour: ink.preempted, align: "center", size: 13 });
    } else {
      const look = lookOf(place.blocks[0], true);
      cell(context, x, y, side, side, { ...look, share: 1, isFresh: place.blocks.some((block) => scene.hits.has(block)) });
    }
    if (place.isLeaf) {
      const ids = [...new Set(place.blocks.flatMap((block) => (scene.owners.get(block) ?? []).map(([id]) => id)))];
      const more = ids.length > 3 ? ` and ${ids.length - 3} more` : "";
      if (ids.length) text(context, ids.slice(0, 3).map(nameOf).join(", ") + more, x + side + 7, y + side / 2, { size: 10, colour: ink.quiet });
    }
  }
}, (x, y, view) => {
  for (const [, place] of view.layout.places) {
    const left = 8 + place.x * view.step, top = 4 + place.y * view.row;
    if (x >= left && x < left + view.side && y >= top && y < top + view.side) return place.isGone ? { key: "gone" + place.blocks[0], lines: [`Block ${place.blocks[0]} is evicted: what it held is lost, to make room`] } : aboutBlock(place.blocks[0], place.blocks);
  }
  return null;
});

/* Where each content of the tree is drawn: its depth across, and a row for each branch. */
function layoutOf(state, group) {
  const places = new Map();
  const put = (block, node, isGone) => {
    if (node.group !== group) return;
    const place = places.get(node.content);
    if (place) place.blocks.push(block);
    else places.set(node.content, { content: node.content, blocks: [block], before: node.before, depth: node.depth, children: [], isGone, isLeaf: true });
  };
  for (const [block, node] of state.nodes) put(block, node, false);
  for (const [block, node] of state.evicted) if (!places.has(node.content)) put(block, node, true);
  const roots = [];
  for (const place of places.values()) {
    place.parent = places.get(place.before);
    if (place.parent) { place.parent.children.push(place); place.parent.isLeaf = false; } else roots.push(place);
  }
  let height = 0, width = 0;
  const first = Math.min(...roots.map((place) => place.depth), Infinity), left = roots.sort((a, b) => b.content - a.content);
  while (left.length) {  /* depth first, without recursion: a path may be thousands of blocks long */
    const place = left.pop();
    const isOnRow = place.parent && place.parent.children[0] === place;
    place.y = isOnRow ? place.parent.y : height;
    place.x = place.parent ? place.parent.x + 1 : place.depth - first;
    if (!isOnRow) height += 1;
    width = Math.max(width, place.x + 1);
    place.children.sort((a, b) => a.content - b.content);
    for (let i = place.children.length - 1; i >= 0; i -= 1) left.push(place.children[i]);
  }
  return { places, width, height };
}
