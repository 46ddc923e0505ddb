// Elements. Text is only ever set as text: nothing that a name, a question or an answer holds becomes markup.

export const $ = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Seconds as 1:05 or 1:02:03; with tenths where they tell something.
export function clock(seconds, tenths = false) {
  const unit = tenths ? 10 : 1;
  const whole = Math.round(Math.max(0, seconds) * unit) / unit;
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  const rest = whole % 60;
  const shown = (tenths && rest % 1 ? rest.toFixed(1) : String(Math.floor(rest))).padStart(tenths && rest % 1 ? 4 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${shown}` : `${minutes}:${shown}`;
}
