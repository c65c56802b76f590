"use strict";
// Sorting, filtering and one-button playing. Everything it shows is in the page already; without it nothing is lost.
const list = document.getElementById("sentences");
if (list) {
  const items = [...list.children];
  const number = (item, name) => Number(item.dataset[name]);
  const gain = (item) => number(item, "base") - number(item, "custom");
  const orders = {
    worst: () => 0,
    gain: (one, other) => gain(other) - gain(one),
    loss: (one, other) => gain(one) - gain(other),
    given: (one, other) => other.dataset.set.localeCompare(one.dataset.set) || number(one, "row") - number(other, "row"),
  };
  const kinds = {
    all: () => true,
    better: (item) => gain(item) > 0,
    worse: (item) => gain(item) < 0,
    wrong: (item) => number(item, "custom") > 0,
    right: (item) => number(item, "custom") === 0,
  };
  const by = (id) => document.getElementById(id);
  const texts = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));

  const most = { at: 20 };
  const show = () => {
    const [kind, of, wanted] = [kinds[by("kind").value], by("of").value, by("search").value.trim().toLowerCase()];
    let shown = 0;
    for (const item of list.children) {
      const fits =
        kind(item) &&
        (of === "all" || (of === "unseen" ? item.dataset.unseen === "1" && item.dataset.set === "test" : item.dataset.set === of)) &&
        texts.get(item).includes(wanted);
      shown += fits;
      item.hidden = !fits || shown > most.at;
    }
    by("shown").textContent = shown === items.length ? `${shown} sentences` : `${shown} of ${items.length} sentences`;
    by("more").hidden = shown <= most.at;
    by("more").textContent = `Show more (${shown - most.at} left)`;
    by("none").hidden = shown > 0;
  };
  const again = () => {
    most.at = 20;
    show();
  };
  by("more").addEventListener("click", () => {
    const next = [...list.children].filter((item) => !item.hidden).at(-1);
    most.at += 50;
    show();
    if (by("more").hidden) (next?.nextElementSibling?.querySelector("button") ?? by("order")).focus();
  });
  by("order").addEventListener("change", () => {
    // Sorting is stable, and `items` is in the order of the page as it came: the worst first.
    list.append(...items.toSorted(orders[by("order").value]));
    again();
  });
  for (const id of ["kind", "of"]) by(id).addEventListener("change", again);
  by("search").addEventListener("input", again);
  by("choices").addEventListener("submit", (event) => event.preventDefault());
  by("choices").hidden = false;
  show();

  const play = (audio) => {
    const button = document.createElement("button");
    const draw = () => {
      button.textContent = audio.paused ? "▶ listen" : "■ stop";
      button.setAttribute("aria-pressed", String(!audio.paused));
    };
    button.type = "button";
    button.className = "play";
    button.setAttribute("aria-label", audio.getAttribute("aria-label"));
    button.addEventListener("click", () => {
      if (!audio.paused) return audio.pause();
      for (const other of list.querySelectorAll("audio")) other.pause();
      audio.currentTime = 0;
      audio.play().catch(() => { audio.hidden = false; button.remove(); });
    });
    for (const event of ["play", "pause", "ended"]) audio.addEventListener(event, draw);
    draw();
    audio.hidden = true;
    audio.before(button);
  };
  list.querySelectorAll("audio").forEach(play);
}
