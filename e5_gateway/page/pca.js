/** Principal components: the two directions in which vectors differ most, by subspace iteration. */

const BLOCK = 8; // directions that are followed; more than two, so that close variances are told apart soon
const MAX_ITERATIONS = 40;
const TOLERANCE = 1e-6; // relative change of the two variances

/**
 * Vectors [N, D] → { points: [[x, y], …], shares: [a, b] }, the share of all variance on each axis.
 *
 * It pauses between iterations, so that the page stays usable.
 * Each axis has its largest coordinate on the positive side, so that the same vectors give the same picture.
 */
export async function pca(vectors) {
  const rows = centered(vectors);
  const total = rows.reduce((sum, row) => sum + dot(row, row), 0);
  const width = rows[0].length;
  const size = Math.min(BLOCK, width, rows.length);
  let directions = orthonormal(start(size, width));
  let variances = [0, 0];
  for (let iteration = 0; iteration < MAX_ITERATIONS; iteration++) {
    const projected = directions.map((direction) => rows.map((row) => dot(row, direction)));
    const { values, vectors: turns } = eigen(projected.map((a) => projected.map((b) => dot(a, b))));
    const ritz = turns.map((turn) => combine(turn, directions));
    const change = Math.max(...variances.map((old, index) => Math.abs(old - (values[index] ?? 0))));
    variances = [values[0] ?? 0, values[1] ?? 0];
    if (change <= TOLERANCE * variances[0] || iteration === MAX_ITERATIONS - 1) {
      const axes = [0, 1].map((index) => upright(rows.map((row) => (ritz[index] ? dot(row, ritz[index]) : 0))));
      const points = rows.map((_, index) => axes.map((axis) => axis[index]));
      return { points, shares: variances.map((value) => (total ? value / total : 0)) };
    }
    await new Promise((resolve) => setTimeout(resolve));
    const weights = turns.map((turn) => combine(turn, projected));
    directions = orthonormal(weights.map((weight) => combine(weight, rows)));
  }
}

function centered(vectors) {
  const mean = new Float64Array(vectors[0].length);
  for (const vector of vectors) vector.forEach((value, index) => (mean[index] += value / vectors.length));
  return vectors.map((vector) => Float64Array.from(vector, (value, index) => value - mean[index]));
}

function dot(a, b) {
  let sum = 0;
  for (let index = 0; index < a.length; index++) sum += a[index] * b[index];
  return sum;
}

/** The sum of rows, each times its weight. */
function combine(weights, rows) {
  const sum = new Float64Array(rows[0].length);
  rows.forEach((row, index) => {
    const weight = weights[index];
    for (let column = 0; column < sum.length; column++) sum[column] += weight * row[column];
  });
  return sum;
}

/** Directions without preference, the same each time (a linear congruential generator). */
function start(count, width) {
  let state = 1;
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32 - 0.5;
  return Array.from({ length: count }, () => Float64Array.from({ length: width }, next));
}

/** Gram–Schmidt, twice for accuracy. Linearly dependent vectors are dropped. */
function orthonormal(vectors) {
  const basis = [];
  for (const vector of vectors) {
    const before = Math.sqrt(dot(vector, vector));
    let rest = vector;
    for (let pass = 0; pass < 2; pass++) {
      for (const known of basis) rest = combine([1, -dot(rest, known)], [rest, known]);
    }
    const norm = Math.sqrt(dot(rest, rest));
    if (norm > 1e-12 * before && norm > 0) basis.push(rest.map((value) => value / norm));
  }
  return basis;
}

/** Eigenvalues, the largest first, and eigenvectors of a small symmetric matrix, by Jacobi's rotations. */
function eigen(matrix) {
  const size = matrix.length;
  const a = matrix.map((row) => [...row]);
  const vectors = a.map((_, i) => a.map((_, j) => Number(i === j)));
  for (let sweep = 0; sweep < 30; sweep++) {
    for (let p = 0; p < size; p++) {
      for (let q = p + 1; q < size; q++) {
        if (Math.abs(a[p][q]) <= 1e-15 * Math.sqrt(Math.abs(a[p][p] * a[q][q]))) continue;
        const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
        const c = 1 / Math.hypot(t, 1);
        const s = t * c;
        for (const v of a) [v[p], v[q]] = [c * v[p] - s * v[q], s * v[p] + c * v[q]];
        for (let k = 0; k < size; k++) [a[p][k], a[q][k]] = [c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]];
        for (const v of vectors) [v[p], v[q]] = [c * v[p] - s * v[q], s * v[p] + c * v[q]];
      }
    }
  }
  const order = a.map((_, index) => index).sort((i, j) => a[j][j] - a[i][i]);
  return { values: order.map((i) => Math.max(0, a[i][i])), vectors: order.map((i) => vectors.map((row) => row[i])) };
}

function upright(axis) {
  const largest = axis.reduce((best, value) => (Math.abs(value) > Math.abs(best) ? value : best), 0);
  return largest < 0 ? axis.map((value) => -value) : axis;
}
