// The service's routes. Every error is an Error with a sentence for people.

let unlock = null; // asks the person for the token; resolves when it was right

export function onLocked(ask) {
  unlock = ask;
}

export async function login(token) {
  const reply = await fetch("/session", { method: "POST", headers: { authorization: `Bearer ${token}` } });
  return reply.ok;
}

async function call(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer: is it still running?");
  }
  if (reply.status === 401 && unlock) {
    await unlock();
    return call(path, options);
  }
  if (!reply.ok) {
    const body = await reply.json().catch(() => null);
    throw new Error(body?.error?.message ?? `The service replied ${reply.status}`);
  }
  return reply;
}

const json = async (path, options) => (await call(path, options)).json();

export const model = async () => (await json("/v1/models")).data[0];

export const videos = (query, signal) => json(`/videos?${new URLSearchParams(query)}`, { signal });

export const place = (id) => `/videos/${encodeURIComponent(id)}`;

export const video = (id) => json(place(id));

// The events of a streamed answer: {content} as it comes, {segments} first, {timings} last.
export async function* chat(body, signal) {
  const reply = await call("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The service ended before the answer did");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const { error, choices, voco } = JSON.parse(data);
      if (error) throw new Error(error.message);
      yield { content: choices[0].delta.content ?? "", ...voco };
    }
  }
}

// A video, or a part of it, as a message names it.
export function reference({ id, start, end }) {
  const seconds = (value) => (value === null ? "" : String(Math.round(value * 1000) / 1000));
  const part = start === null && end === null ? "" : `#t=${seconds(start)}${end === null ? "" : `,${seconds(end)}`}`;
  return { type: "video_url", video_url: { url: `voco:${encodeURIComponent(id)}${part}` } };
}
