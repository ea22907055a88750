// Where one looks: one moment in all charts, by pointer, touch or arrow keys.

const STEP_SECONDS = 1;
const LEAP_SECONDS = 30;

export class Cursor {
  /** The moment, seconds; null while one looks at what is now. */
  time = null;
  #panels;
  #span = { from: 0, to: 1 };
  #onMove;

  /**
   * @param {import("./panel.js").Panel[]} panels
   * @param {() => void} onMove called when one looks elsewhere
   */
  constructor(panels, onMove) {
    this.#panels = panels;
    this.#onMove = onMove;
    panels.forEach((panel, place) => this.#listen(panel, place));
    panels[0].plot.tabIndex = 0;
  }

  /** Follow the time that is shown; a moment that has left it is looked at no more. */
  follow(span) {
    this.#span = span;
    if (this.time !== null && this.time < span.from) this.time = null;
  }

  #listen({ plot }, place) {
    const look = (event) => this.#look(event);
    plot.addEventListener("pointerdown", look);
    plot.addEventListener("pointermove", look);
    plot.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.#go(null);
    });
    plot.addEventListener("keydown", (event) => this.#press(event, place));
    plot.addEventListener("focus", () => this.#hold(place));
    plot.addEventListener("blur", () => this.#go(null));
  }

  #look(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    this.#go(this.#span.from + share * (this.#span.to - this.#span.from));
  }

  #press(event, place) {
    const now = this.time ?? this.#span.to;
    const times = {
      ArrowLeft: now - STEP_SECONDS,
      ArrowRight: now + STEP_SECONDS,
      PageDown: now - LEAP_SECONDS,
      PageUp: now + LEAP_SECONDS,
      Home: this.#span.from,
      End: null,
      Escape: null,
    };
    const steps = { ArrowUp: -1, ArrowDown: 1 };
    if (event.key in times) this.#go(this.#within(times[event.key]));
    else if (event.key in steps) this.#enter(place, steps[event.key]);
    else return;
    event.preventDefault();
  }

  #within(time) {
    if (time === null || time >= this.#span.to) return null;
    return Math.max(time, this.#span.from);
  }

  #enter(place, step) {
    let next = place + step;
    while (this.#panels[next]?.element.hidden) next += step;
    const { time } = this;
    this.#panels[next]?.plot.focus();
    this.#go(time);
  }

  // One of the charts is reached by Tab, and the others from there by arrow keys.
  #hold(place) {
    this.#panels.forEach(({ plot }, other) => {
      plot.tabIndex = other === place ? 0 : -1;
    });
    this.#panels[place].speak(null);
  }

  #go(time) {
    if (time === this.time) return;
    this.time = time;
    this.#onMove();
  }
}
