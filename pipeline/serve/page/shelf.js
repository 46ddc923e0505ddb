// The list of videos: search as you type, state, pictures, and which are asked about.

import { videos as load, place } from "./api.js";
import { $, clock, el } from "./dom.js";

const STATES = { complete: "", growing: "live", failed: "failed", partial: "in work" };

export class Shelf {
  constructor({ open, toggle }) {
    this.open = open;
    this.toggle = toggle;
    this.rows = [];
    this.current = null;
    this.chosen = new Set();
    let timer;
    $("search").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.load(), 120);
    });
    $("search").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && this.rows.length) this.open(this.rows[0].id);
      if (event.key === "Escape") event.target.blur();
    });
    $("status").addEventListener("change", () => this.load());
    $("more").addEventListener("click", () => this.load(this.next));
  }

  async load(after = "") {
    this.request?.abort();
    const request = (this.request = new AbortController());
    const query = { search: $("search").value.trim(), after };
    if ($("status").value) query.status = $("status").value;
    let page;
    try {
      page = await load(query, request.signal);
    } catch (error) {
      if (error.name !== "AbortError") $("count").textContent = error.message;
      return;
    }
    this.rows = after ? [...this.rows, ...page.videos] : page.videos;
    this.next = page.next;
    const found = this.rows.length + page.left;
    $("count").textContent =
      found === page.total ? `${found} video${found === 1 ? "" : "s"}` : `${found} of ${page.total} videos`;
    $("more").hidden = page.left === 0;
    $("more").textContent = `Show more (${page.left} left)`;
    const items = page.videos.map((row) => this.item(row));
    if (after) $("videos").append(...items);
    else $("videos").replaceChildren(...items);
    this.mark();
  }

  item(row) {
    const growing = row.status === "growing";
    const ready = row.status === "complete" || growing;
    const facts = ready
      ? [clock(row.duration ?? 0), `${row.segments} segment${row.segments === 1 ? "" : "s"}`].join(" · ")
      : (row.reason ?? "not finished");
    const picture = el("span", { class: "thumb" });
    if (row.live) {
      picture.append("●");
    } else if (ready) {
      const image = el("img", { alt: "", loading: "lazy", decoding: "async", src: `${place(row.id)}/thumbnails` });
      image.addEventListener("error", () => image.remove());
      picture.append(image);
    } else {
      picture.append(row.status === "failed" ? "✕" : "…");
    }
    const state = STATES[row.status] ?? row.status;
    const button = el(
      "button",
      { class: "video", type: "button", onclick: () => this.open(row.id) },
      picture,
      el(
        "span",
        { class: "text" },
        el("span", { class: "name", title: row.id }, row.id),
        el("span", { class: "facts" }, state ? el("b", { class: row.status }, state) : null, state ? " " : null, facts),
      ),
    );
    const add = el("button", {
      class: "add", type: "button", title: "Ask about this one too", "aria-label": `Ask about ${row.id} too`,
      hidden: !ready, onclick: () => this.toggle(row),
    }); // prettier-ignore
    const item = el("li", {}, button, add);
    item.dataset.id = row.id;
    return item;
  }

  // Show which video is open, and which others are asked about.
  mark(current = this.current, chosen = this.chosen) {
    this.current = current;
    this.chosen = chosen;
    for (const item of $("videos").children) {
      const open = item.dataset.id === current;
      const [button, add] = item.children;
      button.setAttribute("aria-current", String(open));
      add.setAttribute("aria-pressed", String(chosen.has(item.dataset.id)));
      add.disabled = open || current === null;
    }
  }

  // Open the next (1) or previous (-1) one.
  step(by) {
    const at = this.rows.findIndex((row) => row.id === this.current);
    const row = this.rows[at < 0 ? 0 : Math.min(this.rows.length - 1, Math.max(0, at + by))];
    if (row) this.open(row.id);
    for (const item of $("videos").children) {
      if (item.dataset.id === row?.id) item.scrollIntoView({ block: "nearest" });
    }
  }
}
