// Which view is shown: what follows `#/` in the address. Each is mounted once and then kept.

/**
 * Show views by the address.
 *
 * @param {HTMLElement} room where they stand.
 * @param {Record<string, (element: HTMLElement) => Promise<void> | void>} views
 */
export function startRouter(room, views) {
  const names = Object.keys(views);
  const mounted = new Map();

  function show() {
    const asked = location.hash.replace(/^#\//, "").split(/[/?]/)[0];
    const name = names.includes(asked) ? asked : names[0];
    for (const link of document.querySelectorAll("[data-view]")) {
      if (link.dataset.view === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    for (const [other, element] of mounted) element.hidden = other !== name;
    if (!mounted.has(name)) {
      const element = document.createElement("div");
      element.className = `${name}-view`;
      mounted.set(name, element);
      room.append(element);
      views[name](element);
    }
    document.title = `${name[0].toUpperCase()}${name.slice(1)} · Outdraft`;
  }

  addEventListener("hashchange", show);
  show();
}
