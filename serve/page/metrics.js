// Rates and quantiles of what a model answered between two scrapes of /metrics.

const NAME = "segpress_request_duration_seconds";

/** Cumulative counts of a model's requests: Map from upper bound in seconds (Infinity last) to count. */
export function histogram(text, model) {
  const buckets = new Map();
  for (const line of text.split("\n")) {
    if (!line.startsWith(`${NAME}_bucket{`)) continue;
    const labels = new Map([...line.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, value]) => [key, value]));
    if (labels.get("model") !== model) continue;
    const bound = labels.get("le");
    buckets.set(bound === "+Inf" ? Infinity : Number(bound), Number(line.slice(line.lastIndexOf(" "))));
  }
  return new Map([...buckets].sort(([a], [b]) => a - b));
}

/** What was added to each bucket; null when the server began anew in between. */
export function added(earlier, later) {
  const difference = new Map([...later].map(([bound, count]) => [bound, count - (earlier.get(bound) ?? 0)]));
  return [...difference.values()].some((count) => count < 0) ? null : difference;
}

export function total(buckets) {
  return buckets.get(Infinity) ?? 0;
}

/**
 * Seconds, linear within a bucket, as Prometheus' histogram_quantile has it; the last finite bound for what lies above
 * it, NaN without requests.
 */
export function quantile(buckets, share) {
  const rank = share * total(buckets);
  if (rank === 0) return NaN;
  let lower = 0;
  let below = 0;
  for (const [bound, count] of buckets) {
    if (count >= rank) {
      return bound === Infinity ? lower : lower + ((bound - lower) * (rank - below)) / (count - below);
    }
    [lower, below] = [bound, count];
  }
  return NaN;
}
