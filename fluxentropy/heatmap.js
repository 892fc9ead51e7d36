"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const texts = [...document.querySelectorAll(".text")];
const places = new Map(); // token element -> [text, row]
texts.forEach((text, number) => [...text.children].forEach((token, row) => places.set(token, [number, row])));

// --- colours ---

function paint(metric) {
  const top = data.tops[metric];
  for (const [token, [number, row]] of places) {
    const value = data.texts[number][metric][row];
    const level = value === null ? "n" : Math.max(0, Math.min(data.levels - 1, Math.floor((value / top) * data.levels)));
    const part = token.classList.contains("part");
    token.className = "q" + level + (part ? " part" : "");
  }
  for (const scale of document.querySelectorAll(".scale")) scale.hidden = scale.dataset.metric !== metric;
}
for (const radio of document.querySelectorAll("input[name=metric]")) {
  radio.addEventListener("change", () => paint(radio.value));
  if (radio.checked) paint(radio.value); // a reloaded page may remember another choice
}

// --- the tooltip ---

const escapes = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
function visible(text) {
  // Spaces, controls and marks of direction as signs that can be seen.
  if (text === "") return "(part of a character)";
  return text
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (c) => escapes[c] || "\\u{" + c.codePointAt(0).toString(16) + "}")
    .replace(/ /g, "␣");
}
function node(name, content, parent, className) {
  const made = document.createElement(name);
  if (content !== null) made.textContent = content;
  if (className) made.className = className;
  parent.append(made);
  return made;
}
function number(value, unit) {
  return value === null ? "–" : value.toFixed(3) + " " + unit;
}
function percent(p) {
  const value = 100 * p;
  return (value >= 0.1 ? value.toFixed(1) : value >= 1e-4 ? value.toPrecision(2) : value.toExponential(1)) + " %";
}

function fill(which, row) {
  const text = data.texts[which];
  tip.replaceChildren();
  const what = node("div", null, tip, "what");
  node("code", visible(data.words[text.token[row]]), what);
  node("span", `id ${text.id[row]} · position ${text.position[row]}`, what);
  const values = node("table", null, tip);
  const surprisal = text.surprisal[row];
  for (const [label, value] of [
    ["surprisal of this token", number(surprisal, "nats")],
    ["its probability was", surprisal === null ? "–" : percent(Math.exp(-surprisal))],
    ["entropy before it", number(surprisal === null ? null : text.entropy[row - 1], "nats")],
    ["varentropy before it", number(surprisal === null ? null : text.varentropy[row - 1], "nats²")],
    ["entropy after it", number(text.entropy[row], "nats")],
    ["varentropy after it", number(text.varentropy[row], "nats²")],
  ]) {
    const line = node("tr", null, values);
    node("th", label, line).scope = "row";
    node("td", value, line);
  }
  const likely = text.next[row];
  if (!likely.length) return;
  const actual = text.token[row + 1];
  const table = node("table", null, tip, "next");
  const hit = likely.some((word, at) => at % 2 === 0 && word === actual);
  node("caption", hit ? "likely next tokens, the actual one underlined" : "likely next tokens", table);
  for (let at = 0; at < likely.length; at += 2) {
    const [word, p] = [likely[at], likely[at + 1]];
    const line = node("tr", null, table, word === actual ? "hit" : "");
    const head = node("th", null, line);
    head.scope = "row";
    node("code", visible(data.words[word]), head);
    node("i", null, node("td", null, line)).style.width = 100 * p + "%";
    node("td", percent(p), line);
  }
}

const docked = matchMedia("(max-width: 36rem)"); // where the tooltip lies at the bottom of the screen
let current = null; // the token that the tooltip is about
function show(token) {
  if (token === current) return;
  hide();
  current = token;
  fill(...places.get(token));
  token.classList.add("on");
  token.setAttribute("aria-describedby", "tip");
  tip.hidden = false;
  place(token);
  const covered = token.getBoundingClientRect().bottom + 16 - tip.getBoundingClientRect().top;
  if (docked.matches && covered > 0) scrollBy(0, covered);
}
function place(token) {
  if (docked.matches) return;
  const box = token.getClientRects()[0] || token.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const x = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
  const below = box.bottom + 6;
  const y = below + height < innerHeight ? below : Math.max(8, box.top - height - 6);
  tip.style.transform = `translate(${x}px, ${y}px)`;
}
function hide() {
  if (!current) return;
  current.classList.remove("on");
  current.removeAttribute("aria-describedby");
  current = null;
  tip.hidden = true;
}
function tokenOf(target) {
  const token = target instanceof Element ? target.closest(".text > *") : null;
  return places.has(token) ? token : null;
}
document.addEventListener("pointerover", (event) => {
  if (event.pointerType !== "mouse") return;
  const token = tokenOf(event.target);
  token ? show(token) : hide();
});
document.addEventListener("click", (event) => {
  const token = tokenOf(event.target);
  token ? show(token) : hide();
});
addEventListener("scroll", () => current && place(current), { passive: true });

// --- the keyboard: Tab goes from text to text, the arrows from token to token ---

for (const text of texts) if (text.firstElementChild) text.firstElementChild.tabIndex = 0;
document.addEventListener("focusin", (event) => {
  const token = tokenOf(event.target);
  if (token && token.matches(":focus-visible")) show(token);
});
document.addEventListener("focusout", hide);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return hide();
  const token = tokenOf(event.target);
  if (!token) return;
  const to = {
    ArrowRight: token.nextElementSibling,
    ArrowLeft: token.previousElementSibling,
    Home: token.parentElement.firstElementChild,
    End: token.parentElement.lastElementChild,
  }[event.key];
  if (!to) return;
  event.preventDefault();
  token.tabIndex = -1;
  to.tabIndex = 0;
  to.focus({ preventScroll: false });
});
