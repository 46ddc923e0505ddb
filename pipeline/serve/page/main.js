// The page: a list of videos, one of them open, a talk about it. The address says which: #/VIDEO_ID.

import { login, model as loadModel, onLocked, video as loadVideo } from "./api.js";
import { $, clock, el } from "./dom.js";
import { Shelf } from "./shelf.js";
import { Talk } from "./talk.js";
import { Timeline } from "./timeline.js";

// others: videos that are asked about as well, by id; then: what is done once the video that was asked for is shown.
const GROWS = 1500; // milliseconds between looks at a video that grows
const state = { video: null, others: new Map(), asked: 0, then: null, timer: null };
let shelf, talk, timeline;

function about() {
  const { start, end } = timeline;
  return [{ id: state.video.id, start, end }, ...[...state.others.keys()].map((id) => ({ id, start: null, end: null }))];
}

// What the next question is about, as chips over the question.
function showAbout() {
  if (!state.video) return;
  const chip = (text, part, drop) =>
    el("li", {}, el("span", { class: "name", title: text }, text), el("span", { class: "part" }, part),
      drop ? el("button", { type: "button", "aria-label": `Leave out ${text}`, onclick: drop }, "✕") : null); // prettier-ignore
  const { start, end } = timeline;
  const whole = start === null && end === null;
  const part = whole ? "" : `${clock(start ?? 0, true)} – ${clock(end ?? timeline.duration, true)}`;
  $("about").replaceChildren(
    chip(state.video.id, part, whole ? null : () => timeline.choose(null, null)),
    ...[...state.others.keys()].map((id) => chip(id, "", () => toggle({ id }))),
  );
  shelf.mark(state.video.id, new Set(state.others.keys()));
}

function toggle(row) {
  if (!state.video || row.id === state.video.id) return;
  if (!state.others.delete(row.id)) state.others.set(row.id, row);
  showAbout();
}

function go(id) {
  location.hash = `#/${encodeURIComponent(id)}`;
  if (state.video?.id === id) document.body.classList.add("viewing");
}

async function show(id) {
  const ticket = ++state.asked;
  let found;
  try {
    found = await loadVideo(id);
  } catch (error) {
    found = { id, status: "failed", reason: error.message };
  }
  if (ticket !== state.asked) return; // another one was opened meanwhile
  clearTimeout(state.timer);
  const ready = found.status === "complete" || found.status === "growing";
  document.body.classList.add("viewing");
  document.title = `${id} · VoCoCache`;
  $("welcome").hidden = true;
  $("viewer").hidden = $("chat").hidden = !ready;
  $("failure").hidden = ready;
  state.video = ready ? found : null;
  state.others.clear();
  shelf.mark(id, new Set());
  if (!ready) {
    $("player").pause();
    $("failure").querySelector("h2").textContent = id;
    const what = found.status === "failed" ? "This video could not be had: " : "This video is not finished yet. ";
    $("failure").querySelector(".reason").textContent = what + (found.reason ?? "");
    return;
  }
  $("title").textContent = id;
  showFacts(found);
  timeline.open(found);
  if (found.status === "growing") state.timer = setTimeout(() => grow(id, ticket), GROWS);
  talk.open(id);
  const notes = found.notes.filter(Boolean);
  $("note").hidden = notes.length === 0;
  $("note").replaceChildren(el("b", {}, talk.model.id), ...notes.flatMap((note) => [" · ", note]));
  showAbout();
  state.then?.();
  state.then = null;
}

function showFacts(found) {
  const facts = [clock(found.duration ?? 0), `${found.segments} segments`];
  if (found.started) facts.unshift(`since ${new Date(1000 * found.started).toLocaleString()}`);
  if (found.status === "growing") facts.unshift("live");
  if (found.gap) facts.push(`${found.gap.toFixed(1)} s are missing before it`);
  if (found.thinned) facts.push(`one frame of ${found.thinned} at times`);
  if (found.damage) facts.push(`damaged: ${found.damage.seconds.toFixed(1)} s lost`);
  if (found.discontinuities) facts.push(`its clock jumps ${found.discontinuities} times`);
  $("facts").textContent = facts.join(" · ");
}

// A video that grows is looked at again and again, until it is complete or another one is open.
async function grow(id, ticket) {
  const found = await loadVideo(id).catch(() => null); // next time, perhaps
  if (ticket !== state.asked) return;
  if (found && found.times.length) {
    state.video = found;
    showFacts(found);
    timeline.grow(found);
    if (found.status !== "growing") {
      $("lastof").hidden = true;
      shelf.load();
      return;
    }
  }
  state.timer = setTimeout(() => grow(id, ticket), GROWS);
}

// A span of a live source's part as people tell the time; else seconds.
function told(span) {
  const started = span.video === state.video?.id ? state.video.started : undefined;
  const text = (seconds) =>
    started === undefined ? clock(seconds, true) : new Date(1000 * (started + seconds)).toLocaleTimeString();
  return `${text(span.start_time)} – ${text(span.end_time)}`;
}

function route() {
  let id = location.hash.replace(/^#\/?/, "");
  try {
    id = decodeURIComponent(id);
  } catch {
    // As it stands there: no video has such a name, and that is said.
  }
  if (id) return show(id);
  document.body.classList.remove("viewing");
  return null;
}

function seek(span) {
  if (span.video === state.video?.id) {
    timeline.seek(span.start_time);
  } else {
    state.then = () => timeline.seek(span.start_time);
    go(span.video);
  }
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (!talk.stop() && state.video) timeline.choose(null, null);
    return;
  }
  if (event.target.closest("input, textarea, select, video")) return;
  const actions = {
    "/": () => $("search").focus(),
    j: () => shelf.step(1),
    k: () => shelf.step(-1),
    a: () => $("question").focus(),
    "?": () => $("help").showModal(),
  };
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  } else if (event.key === " " && !event.target.closest("button")) {
    event.preventDefault();
    timeline.toggle();
  } else if (state.video) {
    timeline.key(event);
  }
}

// The token: from the address that the service printed, or asked for.
let opening = null;
function unlock() {
  opening ??= new Promise((resolve) => {
    $("login").addEventListener("cancel", (event) => event.preventDefault());
    $("login").showModal();
    $("loginform").addEventListener("submit", async (event) => {
      event.preventDefault();
      if (await login($("token").value.trim())) {
        $("login").close();
        opening = null;
        resolve();
      } else {
        $("loginerror").textContent = "That is another one.";
      }
    });
  });
  return opening;
}

async function begin() {
  onLocked(unlock);
  const given = location.hash.match(/^#token=(.+)$/);
  if (given) {
    history.replaceState(null, "", location.pathname);
    await login(decodeURIComponent(given[1]));
  }
  shelf = new Shelf({ open: go, toggle });
  timeline = new Timeline(showAbout);
  let model;
  try {
    model = await loadModel();
  } catch (error) {
    $("welcome").querySelector("p").textContent = error.message;
    return;
  }
  talk = new Talk({ model, about, seek, told });
  $("where").replaceChildren(el("span", {}, model.voco.store), el("span", { class: "chip", title: model.voco.note ?? "" }, model.id));
  $("back").addEventListener("click", () => document.body.classList.remove("viewing"));
  $("keys").addEventListener("click", () => $("help").showModal());
  document.addEventListener("keydown", keys);
  window.addEventListener("hashchange", route);
  await shelf.load();
  await route();
}

begin();
