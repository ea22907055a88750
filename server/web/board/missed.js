// What came while nobody listened, out of two readings of the counters of `/metrics`.

const AHEAD = "outdraft:spec_decode_";

/**
 * Count drafts between two readings, as a sample has them.
 * @param {Record<string, number>} before by name and labels
 * @param {Record<string, number>} now the same, later
 */
export function missedDrafts(before, now) {
  const positions = byLabel(before, now, "num_draft_tokens_per_pos", "num_accepted_tokens_per_pos");
  return {
    by_position: Object.values(positions),
    by_drafter: byLabel(before, now, "drafter_draft_tokens", "drafter_accepted_tokens"),
  };
}

function byLabel(before, now, proposedName, acceptedName) {
  const start = `${AHEAD}${proposedName}_total{`;
  const found = {};
  for (const name of Object.keys(now)) {
    if (!name.startsWith(start)) continue;
    const labels = name.slice(start.length - 1);
    found[labels.split('"')[1]] = {
      proposed: growth(before, now, name),
      accepted: growth(before, now, `${AHEAD}${acceptedName}_total${labels}`),
    };
  }
  return found;
}

// An engine that was started anew counts from 0.
function growth(before, now, name) {
  const was = before[name] ?? 0;
  return now[name] >= was ? now[name] - was : now[name];
}
