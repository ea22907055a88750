// Whether anybody looks: the page is in front, and the element on it is shown.

// Browsers open few connections to one server, all tabs together, and each stream holds one.
const HIDDEN_MS = 30_000;

/**
 * Tell when somebody looks, and when nobody has for a while.
 * @param {Element} element
 * @param {{onLook: () => void, onLeave: () => void}} told
 * @returns {{isSeen: () => boolean, stop: () => void}}
 */
export function watchAttention(element, { onLook, onLeave }) {
  let isShown = true;
  let leaving = null;
  const isSeen = () => isShown && document.visibilityState === "visible";
  const change = () => {
    clearTimeout(leaving);
    if (isSeen()) onLook();
    else leaving = setTimeout(onLeave, HIDDEN_MS);
  };
  const observer = new IntersectionObserver((entries) => {
    isShown = entries.at(-1).isIntersecting;
    change();
  });
  observer.observe(element);
  document.addEventListener("visibilitychange", change);
  const stop = () => {
    clearTimeout(leaving);
    observer.disconnect();
    document.removeEventListener("visibilitychange", change);
  };
  return { isSeen, stop };
}
