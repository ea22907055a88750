// Makes elements. Text is always set as text, so nothing that a model writes becomes markup.

/**
 * Make an element.
 *
 * @param {string} tag
 * @param {object} given `class`, `on…` handlers, `data`, attributes; null and false leave one out.
 * @param {...(Node|string|null|Array)} children
 */
export function h(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) setPart(element, name, value);
  element.append(...children.flat(2).filter((child) => child != null && child !== false));
  return element;
}

function setPart(element, name, value) {
  if (value == null || value === false) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "data") Object.assign(element.dataset, value);
  else if (name === "value" || name === "checked") element[name] = value;
  else element.setAttribute(name, value === true ? "" : value);
}

/** Say something to those who do not see the page. */
export function announce(text) {
  document.getElementById("live").textContent = text;
}

/** Show something for a while, beside everything else. */
export function notify(text, seconds = 6) {
  const notice = h("p", { class: "notice" }, text);
  document.getElementById("notices").append(notice);
  setTimeout(() => notice.remove(), seconds * 1000);
}

/** Call a function at most once a frame, with what it was last called with. */
export function oncePerFrame(call) {
  let waiting = null;
  let given = [];
  const run = (...args) => {
    given = args;
    waiting ??= requestAnimationFrame(() => {
      waiting = null;
      call(...given);
    });
  };
  run.cancel = () => {
    cancelAnimationFrame(waiting);
    waiting = null;
  };
  return run;
}
