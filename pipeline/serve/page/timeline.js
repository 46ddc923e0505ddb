// One video: player, pictures along its time, and the part that is asked about.

import { place } from "./api.js";
import { $, clock } from "./dom.js";

const PICTURE = 64; // pixels of width that a picture has on the timeline, about
const MOST_PICTURES = 32;
const MOST_TICKS = 240;
const DRAG = 5; // pixels from which on a press is a drag

export class Timeline {
  constructor(changed) {
    this.changed = changed; // is told of another window
    this.duration = 0;
    this.time = 0;
    this.start = this.end = null;
    const line = $("timeline");
    $("player").addEventListener("timeupdate", () => this.show($("player").currentTime));
    $("player").addEventListener("error", () => this.withoutPlayer("This browser cannot play the file."));
    line.addEventListener("pointerdown", (event) => this.press(event));
    line.addEventListener("keydown", (event) => this.key(event));
    $("strip").addEventListener("error", () => ($("strip").hidden = true));
    $("range").addEventListener("submit", (event) => event.preventDefault());
    for (const id of ["from", "to"]) $(id).addEventListener("change", () => this.typed());
    $("unrange").addEventListener("click", () => this.choose(null, null));
    $("last").addEventListener("change", () => this.follow());
  }

  open(video) {
    this.duration = 0;
    this.start = this.end = null;
    $("last").value = "";
    $("lastof").hidden = video.status !== "growing";
    this.grow(video);
    const player = $("player");
    player.hidden = !video.has_source;
    $("noplayer").hidden = video.has_source;
    if (video.has_source) {
      player.src = `${place(video.id)}/source`;
    } else {
      player.removeAttribute("src");
      player.load();
      this.withoutPlayer("The file is not played here: it is elsewhere, or the service runs without --sources.");
    }
    const count = Math.min(MOST_PICTURES, Math.max(4, Math.round($("timeline").clientWidth / PICTURE)));
    $("strip").hidden = !video.has_pictures;
    if (video.has_pictures) $("strip").src = `${place(video.id)}/thumbnails?count=${count}`;
    else $("strip").removeAttribute("src");
    this.choose(null, null);
    this.show(0);
  }

  // What may change while a video grows: its edge moves, and with it the last seconds, if these are asked about.
  grow(video) {
    this.duration = Math.max(video.duration ?? 0, video.times.at(-1)?.[1] ?? 0, 0.001);
    $("length").textContent = clock(this.duration);
    $("timeline").setAttribute("aria-valuemax", String(this.duration));
    const ticks = video.times.length <= MOST_TICKS ? video.times.map(([first]) => first) : [];
    $("ticks").replaceChildren(
      ...ticks.map((seconds) => {
        const tick = document.createElement("i");
        tick.style.left = this.percent(seconds);
        return tick;
      }),
    );
    if ($("last").value) this.follow();
    else this.choose(this.start, this.end);
  }

  // Ask about the last seconds, wherever the edge is.
  follow() {
    const seconds = Number($("last").value);
    this.choose(seconds ? Math.max(0, this.duration - seconds) : null, null, true);
  }

  withoutPlayer(why) {
    $("player").hidden = true;
    $("noplayer").hidden = false;
    $("noplayer").textContent = why;
  }

  percent = (seconds) => `${(100 * Math.min(1, Math.max(0, seconds / this.duration))).toFixed(3)}%`;

  show(seconds) {
    this.time = seconds;
    $("head").style.left = this.percent(seconds);
    $("now").textContent = clock(seconds, true);
    $("timeline").setAttribute("aria-valuenow", seconds.toFixed(2));
    $("timeline").setAttribute("aria-valuetext", `${clock(seconds, true)} of ${clock(this.duration)}`);
  }

  seek(seconds) {
    const to = Math.min(this.duration, Math.max(0, seconds));
    if (!$("player").hidden) $("player").currentTime = to;
    this.show(to);
  }

  toggle() {
    const player = $("player");
    if (player.hidden) return;
    if (player.paused) player.play().catch(() => {});
    else player.pause();
  }

  // Ask about what lies between two times; null: its own ends.
  choose(start, end, follows = false) {
    if (!follows && (start !== this.start || end !== this.end)) $("last").value = "";
    if (start !== null && end !== null && start > end) [start, end] = [end, start];
    this.start = start;
    this.end = end;
    const whole = start === null && end === null;
    const box = $("window");
    box.hidden = whole;
    $("unrange").hidden = whole;
    box.style.left = this.percent(start ?? 0);
    box.style.width = `calc(${this.percent(end ?? this.duration)} - ${this.percent(start ?? 0)})`;
    $("from").value = start === null ? "" : String(Math.round(start * 10) / 10);
    $("to").value = end === null ? "" : String(Math.round(end * 10) / 10);
    this.changed();
  }

  typed() {
    const value = (id) => ($(id).value === "" ? null : Math.max(0, Number($(id).value)));
    this.choose(value("from"), value("to"));
  }

  press(event) {
    if (event.button !== 0) return;
    const line = $("timeline");
    const box = line.getBoundingClientRect();
    const at = (moved) => this.duration * Math.min(1, Math.max(0, (moved.clientX - box.left) / box.width));
    const tenth = (seconds) => Math.round(seconds * 10) / 10;
    const from = event.clientX;
    let dragged = false;
    line.setPointerCapture(event.pointerId);
    const move = (moved) => {
      dragged ||= Math.abs(moved.clientX - from) >= DRAG;
      if (dragged) this.choose(tenth(at(event)), tenth(at(moved)));
    };
    const up = (moved) => {
      line.removeEventListener("pointermove", move);
      line.removeEventListener("pointerup", up);
      line.removeEventListener("pointercancel", up);
      this.seek(dragged ? this.start : at(moved));
    };
    line.addEventListener("pointermove", move);
    line.addEventListener("pointerup", up);
    line.addEventListener("pointercancel", up);
  }

  // Keys of the timeline; also those of the page that are about time.
  key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10 };
    if (event.key in steps) this.seek(this.time + steps[event.key]);
    else if (event.key === "Home") this.seek(0);
    else if (event.key === "End") this.seek(this.duration);
    else if (event.key === "[") this.choose(this.time, this.end !== null && this.end > this.time ? this.end : null);
    else if (event.key === "]") this.choose(this.start !== null && this.start < this.time ? this.start : null, this.time);
    else return false;
    event.preventDefault();
    event.stopPropagation();
    return true;
  }
}
