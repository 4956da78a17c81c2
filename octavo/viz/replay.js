/* The engine's memory and queues at every step, replayed from the changes that deltas.py lists. It does what frames.py
   does in Python; the tests compare the two at every step. Nothing here draws. */

class State {
  constructor(data) {
    this.data = data;
    this.sizes = data.sizes;
    this.tables = new Map();     /* sequence -> cache group -> block ids, 0 behind a window */
    this.computed = new Map();   /* sequence -> tokens in the cache once the step is done */
    this.batch = new Map();      /* sequence -> [start, tokens, kind] of this step */
    this.reached = new Map();    /* sequence -> tokens that were ever computed; after a preemption they are again */
    this.requestOf = new Map();  /* sequence -> place in data.requests */
    this.waiting = new Set();
    this.running = new Set();
    this.refs = new Uint16Array(data.sizes.num_blocks + 1);
    this.nodes = new Map();      /* block -> {group, depth, before, content} */
    this.evicted = [];           /* [block, its node] of this step */
    this.forks = [];             /* [parent, child] of this step */
  }

  clone() {
    const copy = new State(this.data);
    for (const [id, tables] of this.tables) copy.tables.set(id, tables.map((table) => table.slice()));
    for (const name of ["computed", "batch", "reached", "requestOf", "nodes"]) copy[name] = new Map(this[name]);
    copy.waiting = new Set(this.waiting);
    copy.running = new Set(this.running);
    copy.refs.set(this.refs);
    copy.evicted = this.evicted;
    return copy;
  }

  /* Move on by the changes of one step. isEnd: no step follows them. */
  advance(changes, isEnd) {
    const promised = new Map();
    for (const [id, [start, number]] of this.batch) promised.set(id, [start + number, number]);
    this.batch = promised;
    this.evicted = [];
    this.forks = [];
    for (const change of changes) this[change[0]](change);
    if (isEnd) this.batch = new Map();
    for (const [id, grant] of this.batch) {
      const [start, number] = grant, reached = this.reached.get(id) ?? 0;
      grant[2] = start < reached ? "again" : start < this.promptLen(id) ? "prefill" : "decode";
      this.computed.set(id, start + number);
      this.reached.set(id, Math.max(reached, start + number));
    }
    for (const [parent, child] of this.forks) {  /* samples fork when the step is planned that computes the prompt's end */
      if (!this.batch.has(parent) || this.batch.has(child) || !this.computed.has(child)) continue;
      this.computed.set(child, this.computed.get(parent));
      this.reached.set(child, this.computed.get(parent));
    }
  }

  promptLen(id) { return this.data.requests[this.requestOf.get(id)]?.[1] ?? 0; }

  tablesOf(id) {
    if (!this.tables.has(id)) this.tables.set(id, Array.from({ length: this.sizes.num_groups }, () => []));
    return this.tables.get(id);
  }

  hold(ids, change) { for (const id of ids) if (id) this.refs[id] += change; }

  runs(id, request) {
    this.running.add(id);
    if (request !== undefined) this.requestOf.set(id, request);
    this.tablesOf(id);
    if (!this.computed.has(id)) this.computed.set(id, 0);
  }

  leaves(id) {
    this.running.delete(id);
    this.waiting.delete(id);
    for (const table of this.tables.get(id) ?? []) this.hold(table, -1);
    for (const map of [this.tables, this.computed, this.reached, this.requestOf]) map.delete(id);
  }

  /* One method for each letter of a change */

  a([, request, id]) { this.requestOf.set(id, request); this.waiting.add(id); }
  y() {
    for (const known of [this.tables, this.computed, this.batch, this.reached, this.requestOf, this.waiting, this.running, this.nodes]) known.clear();
    this.refs.fill(0);
  }
  z([, id, request, isRunning, computed, ...tables]) {
    this.requestOf.set(id, request);
    (isRunning ? this.running : this.waiting).add(id);
    if (!tables.length) return;
    this.tables.set(id, tables.map((table) => table.slice()));
    for (const table of tables) this.hold(table, 1);
    this.computed.set(id, computed);
    this.reached.set(id, computed);
  }
  r([, id]) { this.waiting.delete(id); this.runs(id); }
  h([, id, tokens, ...found]) {
    const places = Math.floor(tokens / this.sizes.block_size), tables = this.tablesOf(id);
    found.forEach((ids, group) => {
      tables[group] = [...new Array(places - ids.length).fill(0), ...ids];
      this.hold(ids, 1);
    });
    this.computed.set(id, tokens);
  }
  g([, id, group, ...ids]) { this.tablesOf(id)[group].push(...ids); this.hold(ids, 1); }
  k([, parent, id, request]) {
    this.runs(id, request);
    this.tables.set(id, this.tablesOf(parent).map((table) => table.slice()));
    for (const table of this.tables.get(id)) this.hold(table, 1);
    this.computed.set(id, this.computed.get(parent) ?? 0);
    this.reached.set(id, this.computed.get(id));
    this.forks.push([parent, id]);
  }
  u([, id]) { this.leaves(id); }
  c([, id, group, place, target]) {
    const table = this.tables.get(id)[group];
    this.hold([table[place]], -1);
    table[place] = target;
    this.hold([target], 1);
  }
  f([, id, group]) { const table = this.tablesOf(id)[group]; this.hold(table, -1); table.length = 0; }
  o([, id, group, ...ids]) {
    const table = this.tablesOf(id)[group], gone = new Set(ids);
    table.forEach((block, place) => { if (gone.has(block)) { this.hold([block], -1); table[place] = 0; } });
  }
  p([, group, depth, before, ...placed]) {
    for (let i = 0; i < placed.length; i += 2, depth += 1) {
      const [block, content] = [placed[i], placed[i + 1]];
      if (block && !this.nodes.has(block)) this.nodes.set(block, { group, depth, before, content });
      before = content;
    }
  }
  e([, block]) {
    if (this.nodes.has(block)) this.evicted.push([block, this.nodes.get(block)]);
    this.nodes.delete(block);
  }
  x([, ...blocks]) { if (blocks.length) for (const block of blocks) this.nodes.delete(block); else this.nodes.clear(); }
  m([, id]) { this.running.delete(id); this.waiting.add(id); this.computed.set(id, 0); }
  d([, id]) { this.leaves(id); }
  t() { /* nothing that a state has */ }
  w() { /* the same */ }
  s([, id, start, number]) { this.batch.set(id, [start, number]); }
  q([, id]) { this.batch.delete(id); }
}

/* Any frame of a run, soon: some states are kept, the others are replayed from the one before. */
class Replay {
  constructor(data) {
    this.data = data;
    this.last = data.changes.length - 1;             /* the frame at the end of the log */
    this.every = Math.max(32, Math.ceil(data.changes.length / 40));
    this.kept = [];
    this.figures = [];                               /* of each frame */
    this.lines = new Map();                          /* sequence -> what it did, for the schedule */
    const state = new State(data);
    data.changes.forEach((changes, frame) => {
      state.advance(changes, frame === this.last);
      if (frame % this.every === 0) this.kept.push(state.clone());
      this.figures.push(figuresOf(state));
      this.note(state, frame, changes);
    });
    this.seek(0);
  }

  /* Add a frame to the lines. A span is [kind, from, to, tokens]; every chunk of a prompt is a span of its own. */
  note(state, frame, changes) {
    for (const change of changes) {
      const line = this.lines.get(change[1]);
      if (line && change[0] === "d") line.end = [frame, change[2], change[3]];
      if (line && change[0] === "u") line.end = [frame, -1, 0];
    }
    if (frame === this.last) return;
    for (const id of state.waiting) this.extend(state, id, frame, this.lines.get(id)?.hasRun ? "preempted" : "waiting", 0);
    for (const id of state.running) if (!state.batch.has(id)) this.extend(state, id, frame, "idle", 0);
    for (const [id, [, number, kind]] of state.batch) this.extend(state, id, frame, kind, number);
  }

  extend(state, id, frame, kind, tokens) {
    if (!this.lines.has(id)) this.lines.set(id, { id, request: state.requestOf.get(id) ?? -1, spans: [], hasRun: false, end: null });
    const line = this.lines.get(id), last = line.spans.at(-1);
    line.hasRun ||= kind !== "waiting";
    line.end = null;
    if (last && last[0] === kind && last[2] === frame && kind !== "prefill" && kind !== "again") { last[2] = frame + 1; last[3] += tokens; }
    else line.spans.push([kind, frame, frame + 1, tokens]);
  }

  /* The state of a frame. It is good until the next call. */
  seek(frame) {
    const from = Math.floor(frame / this.every) * this.every;
    if (!(this.at >= from && this.at <= frame)) {
      this.state = this.kept[from / this.every].clone();
      this.at = from;
    }
    while (this.at < frame) {
      this.at += 1;
      this.state.advance(this.data.changes[this.at], this.at === this.last);
    }
    return this.state;
  }
}

/* How many slots of the block at this place hold a token of the sequence. */
function filledOf(state, id, place) {
  const size = state.sizes.block_size;
  return Math.min(Math.max((state.computed.get(id) ?? 0) - place * size, 0), size);
}

/* What the numbers, and the curves of all steps, are made of. */
function figuresOf(state) {
  const size = state.sizes.block_size, partly = new Map();
  const tokens = { prefill: 0, again: 0, decode: 0 };
  let used = 0, cached = 0, entries = 0;
  for (let block = 1; block < state.refs.length; block += 1) {
    if (state.refs[block]) used += 1;
    entries += state.refs[block];
  }
  for (const block of state.nodes.keys()) if (!state.refs[block]) cached += 1;
  for (const [id, tables] of state.tables) {
    const computed = state.computed.get(id) ?? 0, full = Math.floor(computed / size);
    for (const table of tables) {
      for (let place = full; place < table.length; place += 1) {
        const filled = filledOf(state, id, place), block = table[place];
        if (block) partly.set(block, Math.max(partly.get(block) ?? 0, filled));
      }
    }
  }
  let slots = used * size;
  for (const filled of partly.values()) slots -= size - filled;
  for (const [, number, kind] of state.batch.values()) tokens[kind] += number;
  return {
    used, cached, entries, slots, ...tokens, tokens: tokens.prefill + tokens.again + tokens.decode,
    sequences: state.batch.size, running: state.running.size, waiting: state.waiting.size, holders: state.tables.size,
  };
}
