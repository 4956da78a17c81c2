/* The schedule: a line for each sequence, and below it what each step computed, on one scale of steps. */

const LEFT = 64;

/* The steps that are seen: `first` and how many. */
function span() {
  const total = replay.last, count = Math.min(scene.zoom || total, total) || 1;
  const first = scene.zoom ? Math.max(0, Math.min(scene.at - Math.floor(count / 2), total - count)) : 0;
  return { first, count };
}

function across(box) {
  const { first, count } = span(), width = box.width - LEFT - 8;
  return { first, count, unit: width / count, x: (frame) => LEFT + (frame - first) / count * width };
}

const schedule = new View("schedule", (context, box, view) => {
  const { first, count, unit, x } = across(box);
  const rows = view.rows = scene.lines.filter((line) => seenIn(line, first, first + count));
  const high = view.high = scene.lines.length > 60 ? 9 : scene.lines.length > 24 ? 13 : 18;
  view.resize(box.width, rows.length * high + 4);
  const top = Math.max(0, Math.floor(box.top / high)), bottom = Math.min(rows.length, Math.ceil((box.top + box.height) / high) + 1);
  for (let row = top; row < bottom; row += 1) {
    const line = rows[row], y = 2 + row * high - box.top, isPale = scene.lit && !scene.lit.sequences.has(line.id);
    for (const one of line.spans) {
      if (one[2] <= first || one[1] >= first + count) continue;
      context.globalAlpha = isPale ? .2 : 1;
      bar(context, one, Math.max(x(one[1]), LEFT), Math.min(x(one[2]), box.width - 8), y, high, unit);
    }
    if (line.end && line.end[0] > first && line.end[0] <= first + count) {
      context.fillStyle = ink.ink;
      context.beginPath();
      context.arc(x(line.end[0]), y + high / 2, Math.min(3, high / 3), 0, 7);
      context.fill();
    }
    context.globalAlpha = 1;
    if (high >= 12 || row % 2 === 0) label(context, line.id, y + high / 2, LEFT - 6);
  }
  cursor(context, box, x, unit);
}, (px, py, view) => {
  const line = view.rows[Math.floor((py - 2) / view.high)];
  if (!line) return null;
  const frame = frameAt(px, view), one = line.spans.find(([, from, to]) => frame >= from && frame < to);
  return { ...aboutLine(line, one, frame), frame: px > LEFT ? frame : undefined };
});

const seenIn = (line, from, to) => line.spans.length > 0 && line.spans[0][1] < to && line.spans.at(-1)[2] > from;

function bar(context, [kind, , , tokens], left, right, y, high, unit) {
  const width = Math.max(right - left, .6), middle = Math.round(y + high / 2);
  if (kind === "waiting" || kind === "idle" || kind === "preempted") {
    context.fillStyle = kind === "preempted" ? ink.preempted : ink.quiet;
    if (kind !== "preempted") { context.fillRect(left, middle - .75, width, kind === "idle" ? .75 : 1.5); return; }
    for (let at = left; at < right; at += 5) context.fillRect(at, middle - 1.5, Math.min(3, right - at), 3);
    return;
  }
  context.fillStyle = ink[kind];
  const gap = kind !== "decode" && unit > 3 ? 1 : 0;
  context.fillRect(left, y + 1.5, Math.max(width - gap, .6), high - 3);
  if (kind !== "decode" && width > 24 && high >= 13) text(context, String(tokens), left + width / 2, middle, { size: 10, colour: ink.on(ink[kind]), align: "center" });
}

/* The step that the page shows. */
function cursor(context, box, x, unit) {
  if (scene.at >= replay.last) return;
  const left = x(scene.at), width = Math.max(unit, 1.5);
  context.globalAlpha = unit > 4 ? .16 : .75;
  context.fillStyle = ink.accent;
  context.fillRect(left, 0, width, box.height);
  context.globalAlpha = 1;
}

function frameAt(x, view) {
  const { first, count } = span();
  return Math.max(0, Math.min(replay.last - 1, first + Math.floor((x - LEFT) / (view.width - LEFT - 8) * count)));
}

const budget = new View("budget", (context, box) => {
  const { first, count, unit, x } = across(box), limit = data.sizes.max_num_batched_tokens;
  const most = Math.max(1, ...replay.figures.map((figures) => figures.tokens)), top = limit && limit <= 2.5 * most ? limit : most;
  const base = box.height - 16, y = (tokens) => base - tokens / top * (base - 16);
  const last = Math.min(first + count, replay.last), each = Math.max(1, Math.floor(1 / unit));
  for (let frame = first; frame < last; frame += each) {
    let figures = replay.figures[frame];  /* of several steps on one pixel, the largest */
    for (let other = frame + 1; other < Math.min(frame + each, last); other += 1) if (replay.figures[other].tokens > figures.tokens) figures = replay.figures[other];
    let at = base;
    for (const kind of ["decode", "again", "prefill"]) {
      const high = figures[kind] / top * (base - 16);
      context.fillStyle = ink[kind];
      context.fillRect(x(frame), at - high, Math.max(unit * each - (unit > 3 ? 1 : 0), .8), high);
      at -= high;
    }
  }
  context.fillStyle = ink.edge;
  context.fillRect(LEFT, base, box.width - LEFT - 8, 1);
  if (limit && top === limit) {
    context.fillStyle = ink.quiet;
    for (let at = LEFT; at < box.width - 8; at += 6) context.fillRect(at, y(limit), 3, 1);
  }
  const said = limit ? `budget ${limit.toLocaleString()} tokens${top === limit ? "" : ", above the top"}` : "";
  text(context, said, box.width - 8, 6, { size: 10, colour: ink.quiet, align: "right" });
  text(context, top.toLocaleString(), LEFT - 6, 16, { size: 10, colour: ink.quiet, align: "right" });
  text(context, "tokens", LEFT - 6, 30, { size: 10, colour: ink.quiet, align: "right" });
  text(context, "0", LEFT - 6, base, { size: 10, colour: ink.quiet, align: "right" });
  text(context, `step ${data.steps[first] ?? ""}`, LEFT, base + 9, { size: 10, colour: ink.quiet });
  text(context, String(data.steps[last - 1] ?? ""), box.width - 8, base + 9, { size: 10, colour: ink.quiet, align: "right" });
  cursor(context, { ...box, height: base }, x, unit);
}, (px, py, view) => {
  if (px < LEFT || !replay.last) return null;
  const frame = frameAt(px, view), { tokens, prefill, again, decode, sequences } = replay.figures[frame];
  const parts = [[decode, "decoded"], [prefill, "of prompts"], [again, "computed again"]].filter(([number]) => number).map(([number, what]) => `${number.toLocaleString()} ${what}`);
  return { key: "step" + frame, frame, lines: [`Step ${data.steps[frame]}`, `${count(tokens, "token")} for ${count(sequences, "sequence")}${parts.length ? ": " + parts.join(", ") : ""}`, tookOf(frame)].filter(Boolean) };
});
