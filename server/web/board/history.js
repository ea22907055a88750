// What was last seen, oldest first, in a ring that never grows.

export class History {
  #samples = [];
  #first = 0;

  /** @param {number} capacity samples kept at most */
  constructor(capacity) {
    this.capacity = capacity;
  }

  get size() {
    return this.#samples.length;
  }

  /** The last sample, or null. */
  get last() {
    return this.size ? this.at(this.size - 1) : null;
  }

  /** Give a sample by its place, 0 the oldest. */
  at(place) {
    return this.#samples[(this.#first + place) % this.capacity];
  }

  /** Add a sample; where there is no room, the oldest goes. */
  push(sample) {
    if (this.size < this.capacity) {
      this.#samples.push(sample);
      return;
    }
    this.#samples[this.#first] = sample;
    this.#first = (this.#first + 1) % this.capacity;
  }

  /** Give the samples since a time, seconds. */
  since(time) {
    const samples = [];
    for (let place = this.firstSince(time); place < this.size; place += 1) {
      samples.push(this.at(place));
    }
    return samples;
  }

  /** Give the place of the first sample at or after a time; `size` where there is none. */
  firstSince(time) {
    let low = 0;
    let high = this.size;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.at(middle).time < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Give the sample nearest to a time, or null. */
  nearest(time) {
    const place = this.firstSince(time);
    if (place === this.size) return this.last;
    if (place === 0) return this.at(0);
    const [before, after] = [this.at(place - 1), this.at(place)];
    return time - before.time < after.time - time ? before : after;
  }
}
