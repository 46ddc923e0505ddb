// Questions and answers about the open video, streamed; each answer tells the seconds that it rests on.

import { chat, reference } from "./api.js";
import { $, el } from "./dom.js";

const MOST_TURNS = 8; // earlier ones that go along

export class Talk {
  constructor({ model, about, seek, told }) {
    this.model = model;
    this.about = about; // what is asked about now: [{id, start, end}]
    this.seek = seek;
    this.told = told; // a span in words
    this.talks = new Map(); // of each video: its element and turns
    $("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else this.ask($("question").value.trim());
    });
    $("question").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.running) this.ask($("question").value.trim());
      }
      if (event.key === "Escape" && !this.running) event.target.blur();
    });
    $("question").addEventListener("input", fit);
  }

  open(id) {
    this.running?.abort();
    if (!this.talks.has(id)) {
      const hint = el("p", { class: "hint" }, "Ask about the whole video, or drag across its timeline to ask about a part.");
      this.talks.set(id, { turns: [], element: el("div", { class: "turns" }, hint) });
    }
    this.talk = this.talks.get(id);
    $("talk").replaceChildren(this.talk.element);
    scroll();
  }

  stop() {
    if (!this.running) return false;
    this.running.abort();
    return true;
  }

  async ask(question) {
    if (!question || !this.talk) return;
    const { talk } = this;
    const about = this.about();
    const user = { role: "user", content: [{ type: "text", text: question }, ...about.map(reference)] };
    // Earlier turns as texts: what they were about is no part of what is asked now.
    const earlier = talk.turns.slice(-2 * MOST_TURNS);
    $("question").value = "";
    fit();
    talk.element.querySelector(".hint")?.remove();
    const body = el("p", { class: "said waiting" });
    const answer = el("article", { class: "answer", "aria-label": "Answer" }, body);
    talk.element.append(el("article", { class: "question", "aria-label": "Question" }, question), answer);
    scroll();
    const running = (this.running = new AbortController());
    this.busy(true);
    let text = "";
    try {
      for await (const event of chat({ model: this.model.id, messages: [...earlier, user] }, running.signal)) {
        if (event.segments) answer.append(this.rests(event.segments, event.skeleton));
        if (event.evidence?.length) answer.append(this.evidence(event.evidence));
        if (event.timings) answer.append(took(event.timings));
        text += event.content;
        body.textContent = text;
        body.classList.toggle("waiting", !text && !event.timings);
        scroll();
      }
      if (!text) body.append(el("i", {}, "(an empty answer)"));
      talk.turns.push({ role: "user", content: question }, { role: "assistant", content: text || " " });
    } catch (error) {
      const ended = error.name === "AbortError";
      answer.append(el("p", { class: ended ? "ended" : "error", role: ended ? "note" : "alert" }, ended ? "Stopped." : error.message));
      if (!text) body.remove();
      if (!ended && !$("question").value) $("question").value = question;
    } finally {
      body.classList.remove("waiting");
      if (this.running === running) this.running = null;
      this.busy(this.running !== null);
      scroll();
    }
  }

  // The seconds that an answer was read from, with a skeleton of the rest where all was too long; a click goes there.
  rests(segments, skeleton) {
    const links = segments.map((span) =>
      el(
        "button",
        {
          class: "span", type: "button", title: `Segments ${span.start + 1} to ${span.stop}`,
          onclick: () => this.seek(span),
        }, // prettier-ignore
        segments.length > 1 ? el("span", { class: "name" }, span.video) : null,
        this.told(span),
      ),
    );
    return el("p", { class: "rests" }, skeleton ? "too long to be read whole: read from " : "read from ", ...links);
  }

  // Of these, the spans that the question is about.
  evidence(spans) {
    const several = new Set(spans.map(({ video }) => video)).size > 1;
    const links = spans.map(({ video, start, end, score }) => {
      const span = { video, start_time: start, end_time: end };
      return el(
        "button",
        { class: "evidence", type: "button", title: `Score ${score.toFixed(2)}`, onclick: () => this.seek(span) },
        several ? el("span", { class: "name" }, video) : null,
        this.told(span),
      );
    });
    return el("p", { class: "rests" }, "about ", ...links);
  }

  busy(is) {
    $("send").textContent = is ? "Stop" : "Ask";
    $("talk").setAttribute("aria-busy", String(is));
  }
}

const took = ({ total }) => el("p", { class: "took" }, total < 1 ? `${Math.round(1000 * total)} ms` : `${total.toFixed(1)} s`);

function fit() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, 160)}px`;
}

const scroll = () => ($("talk").scrollTop = $("talk").scrollHeight);
