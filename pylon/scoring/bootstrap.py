"""95 % confidence intervals: of a score over patients, of a difference over patients and seeds.

Arrays in, numbers out. `patient_ids` holds the patient of each image or box, `patient_counts` the
number of patients behind each score.
"""

import numpy as np
from scipy import sparse, stats

RESAMPLES = 2000
TAILS = (2.5, 97.5)  # percent
FEWEST = 10  # fewest patients for which the bootstrap is trusted
POSITIVES_AT_A_TIME = 256  # compared with all negatives in one matrix; limits its memory


def resample_patients(patient_ids: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Resample patients with replacement, since images of one patient are not independent.

    Args:
        patient_ids: (N,) patient of each image or box.

    Returns:
        patient_of: (N,) index of the patient, 0 .. P - 1.
        drawn: (RESAMPLES, P) float32, how often each patient occurs in each resample.
    """
    _, patient_of = np.unique(patient_ids, return_inverse=True)
    count = patient_of.max() + 1
    rng = np.random.default_rng(seed)
    drawn = np.empty((RESAMPLES, count), np.float32)
    for k in range(RESAMPLES):
        drawn[k] = np.bincount(rng.integers(count, size=count), minlength=count)
    return patient_of, drawn


def resampled_auroc(labels: np.ndarray, scores: np.ndarray, patient_ids: np.ndarray) -> np.ndarray:
    """AUROC of each class, and its two means over classes, in resamples of the patients.

    Images whose label is unknown do not count for the class.

    The AUROC is the share of pairs of a positive and a negative image that are ranked correctly.
    Pairs are counted once per pair of patients; resamples only weight these counts, so images are
    never sorted again.

    Args:
        labels: (N, C), 0 or 1, NaN if unknown.
        scores: (N, C), higher for more likely.
        patient_ids: (N,) patient of each image.

    Returns:
        (RESAMPLES, C + 2): one column per class, their mean weighted by positives, their plain
        mean; NaN where a resample has no positive or no negative.
    """
    patient_of, drawn = resample_patients(patient_ids)
    areas = np.full((RESAMPLES, labels.shape[1]), np.nan)
    positives = np.full((RESAMPLES, labels.shape[1]), np.nan)
    for c in range(labels.shape[1]):
        positive = labels[:, c] == 1
        negative = labels[:, c] == 0
        of_positives = patients_by_images(patient_of, positive)  # (P, positive images)
        of_negatives = patients_by_images(patient_of, negative)  # (P, negative images)

        # number of pairs in each resample
        positives[:, c] = drawn @ of_positives.sum(axis=1)
        pairs = positives[:, c] * (drawn @ of_negatives.sum(axis=1))

        # correctly ranked pairs; only of patients with positives, since most have none
        having = np.flatnonzero(of_positives.sum(axis=1))
        ordered = ordered_pairs(
            scores[positive, c], scores[negative, c], of_positives[having], of_negatives
        )
        won = ((drawn[:, having] @ ordered) * drawn).sum(axis=1, dtype=np.float64)
        np.divide(won, pairs, out=areas[:, c], where=pairs > 0)
    return with_means(areas, positives)


def patients_behind_auroc(labels: np.ndarray, patient_ids: np.ndarray) -> np.ndarray:
    """Number of patients behind each score of `resampled_auroc`: (C + 2,) int.

    For a class, those with positives or those with negatives, whichever are fewer; for the means,
    all.

    Args:
        labels: (N, C), 0 or 1, NaN if unknown.
        patient_ids: (N,) patient of each image.
    """
    counts = []
    for column in labels.T:
        sides = [len(np.unique(patient_ids[column == label])) for label in (0, 1)]
        counts.append(min(sides))
    everybody = len(np.unique(patient_ids))
    return np.array([*counts, everybody, everybody])


def ordered_pairs(
    positive_scores: np.ndarray,
    negative_scores: np.ndarray,
    of_positives: sparse.csr_array,
    of_negatives: sparse.csr_array,
) -> np.ndarray:
    """Count the correctly ranked pairs of a positive and a negative image; a tie counts half.

    Args:
        positive_scores, negative_scores: (positive images,), (negative images,).
        of_positives, of_negatives: which patients they belong to (`patients_by_images`).

    Returns:
        (P, Q) float32, by patient of the positive and patient of the negative.
    """
    negative_scores = negative_scores[:, None]  # (negative images, 1)
    counts = np.zeros((of_positives.shape[0], of_negatives.shape[0]), np.float32)
    for first in range(0, len(positive_scores), POSITIVES_AT_A_TIME):
        chunk = slice(first, first + POSITIVES_AT_A_TIME)
        ahead = (negative_scores < positive_scores[chunk]).astype(np.float32)
        ahead[negative_scores == positive_scores[chunk]] = 0.5
        counts += of_positives[:, chunk] @ (of_negatives @ ahead).T
    return counts


def patients_by_images(patient_of: np.ndarray, chosen: np.ndarray) -> sparse.csr_array:
    """(P, chosen images) float32, 1 where an image belongs to a patient."""
    rows = patient_of[chosen]
    shape = (patient_of.max() + 1, len(rows))
    return sparse.csr_array((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), shape)


def with_means(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Append the weighted and the plain mean over the defined scores.

    Args:
        scores: (R, K), NaN where undefined.
        weights: (R, K).

    Returns:
        (R, K + 2).
    """
    defined = ~np.isnan(scores)
    scores_or_0 = np.nan_to_num(scores)
    weights = np.where(defined, weights, 0)
    with np.errstate(invalid="ignore"):  # 0 / 0 where none is defined
        weighted = (scores_or_0 * weights).sum(axis=1) / weights.sum(axis=1)
        plain = scores_or_0.sum(axis=1) / defined.sum(axis=1)
    return np.column_stack([scores, weighted, plain])


def resampled_accuracy(
    hits: np.ndarray, classes: np.ndarray, patient_ids: np.ndarray, names: list[str]
) -> np.ndarray:
    """Point accuracy of each class in `names`, and of all boxes pooled, in resamples of patients.

    Args:
        hits: (N,) in [0, 1], one per box, or differences of two such; NaN for boxes not counted.
        classes: (N,) class name of each box.
        patient_ids: (N,) patient of each box.

    Returns:
        (RESAMPLES, len(names) + 1); NaN where a resample has no box of a class.
    """
    member = np.column_stack([*(classes == name for name in names), np.ones(len(hits), bool)])
    hits_of_class = np.where(member, np.asarray(hits, np.float64)[:, None], np.nan)  # (N, K)
    return resampled_means(hits_of_class, patient_ids)


def resampled_means(values: np.ndarray, patient_ids: np.ndarray) -> np.ndarray:
    """Means over the rows, in resamples of the patients.

    Args:
        values: (N, K); NaN where a row does not count.
        patient_ids: (N,) patient of each row.

    Returns:
        (RESAMPLES, K); NaN where no row of a resample counts.
    """
    patient_of, drawn = resample_patients(patient_ids)
    of_rows = patients_by_images(patient_of, np.ones(len(values), bool))  # (P, N)
    counted = ~np.isnan(values)
    total = drawn @ (of_rows @ np.nan_to_num(values))  # (RESAMPLES, K)
    count = drawn @ (of_rows @ (1.0 * counted))
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def too_little(scores: np.ndarray, patient_counts: np.ndarray) -> np.ndarray:
    """Where there is too little data to resample.

    That is: fewer than 10 patients, or less than one patient's worth of hits or of misses.

    Args:
        scores: (..., K) in [0, 1].
        patient_counts: (K,) number of patients behind each score.
    """
    hits = scores * patient_counts
    rarer = np.minimum(hits, patient_counts - hits)
    return (patient_counts < FEWEST) | (rarer < 1 - 1e-9)


def bounds(
    resamples: np.ndarray, patient_counts: np.ndarray, scores: np.ndarray | None = None
) -> np.ndarray:
    """95 % confidence interval of each score.

    Where there is too little data to resample (`too_little`, or all resamples are equal), the
    interval covers at least the binomial one (Clopper-Pearson) with as many trials as patients.
    That is nearly exact for boxes, since few patients have two, and conservative for an AUROC,
    whose variance is at most the binomial one (Birnbaum and Klose 1957) with as many trials as
    there are patients with its rarer label.

    Args:
        resamples: (R, K) resampled scores.
        patient_counts: (K,) number of patients behind each score.
        scores: (K,) the scores, NaN where they are no shares of hits, such as a mean IoU; without
            scores, as for differences, none is. Where there is too little data to resample, such
            columns have no bounds.

    Returns:
        low and high, (2, K); NaN where undefined.
    """
    # percentiles, where resamples differ
    both = np.full((2, resamples.shape[1]), np.nan)
    undefined = np.isnan(resamples).all(axis=0)
    varied = np.nanstd(np.where(undefined, 0, resamples), axis=0) > 1e-9
    both[:, varied] = np.nanpercentile(resamples[:, varied], TAILS, axis=0)
    if scores is None:
        return np.where(patient_counts < FEWEST, np.nan, both)

    # none, or binomial bounds, where there is too little data
    both[:, np.isnan(scores) & (patient_counts < FEWEST)] = np.nan
    hits = scores * patient_counts
    misses = patient_counts - hits
    low = np.where(hits > 0, stats.beta.ppf(0.025, hits, misses + 1), 0)
    high = np.where(hits < patient_counts, stats.beta.ppf(0.975, hits + 1, misses), 1)
    little = (too_little(scores, patient_counts) | ~varied) & ~np.isnan(scores)
    return np.where(little, [np.fmin(both[0], low), np.fmax(both[1], high)], both)


def difference_of_seeds(
    ours: np.ndarray, theirs: np.ndarray, of_patients: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of two means over seeds, with its 95 % confidence interval.

    The interval is Welch's t, with the variance over patients added where it is known.

    Args:
        ours: (n, K) scores, one row per seed.
        theirs: (m, K).
        of_patients: (K,) standard deviation of the difference over resampled patients
            (`paired_spread`). With it, a side with a single seed adds no variance, since the spread
            of its seeds is unknown. Without it, both sides need two seeds.

    Returns:
        difference, low, high, (K,) each; the bounds are NaN if there are too few seeds.
    """
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    if of_patients is None and min(len(ours), len(theirs)) < 2:
        undefined = np.full(len(difference), np.nan)
        return difference, undefined, undefined

    # variance and degrees of freedom of each part
    parts = [(np.zeros_like(difference) if of_patients is None else of_patients**2, np.inf)]
    for side in (ours, theirs):
        if len(side) > 1:
            parts.append((side.var(axis=0, ddof=1) / len(side), len(side) - 1))
    variance = sum(part for part, _ in parts)

    # degrees of freedom of their sum (Welch and Satterthwaite)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / sum(part**2 / df for part, df in parts)
        half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    half = np.where(variance > 0, half, 0)
    return difference, difference - half, difference + half


def paired_spread(ours: np.ndarray, theirs: np.ndarray, patient_counts: np.ndarray) -> np.ndarray:
    """Standard deviation of the difference of two scores over resampled patients: (K,).

    Where either has too little data to resample, or all resamples are equal, it is at least that of
    a binomial bound with as many trials as patients, since the next patient might differ. With
    fewer than 10 patients it is 1, so that nothing is decided.

    Args:
        ours, theirs: (R, K) scores in the same resamples of the patients.
        patient_counts: (K,) number of patients behind each score.
    """
    spread = np.nanstd(ours - theirs, axis=0)
    means = np.nanmean([ours, theirs], axis=1)  # (2, K)
    little = too_little(means, patient_counts).any(axis=0) | (spread < 1e-9)
    of_the_next = (1 - 0.025 ** (1 / patient_counts)) / stats.norm.ppf(0.975)
    spread = np.where(little, np.fmax(spread, of_the_next), spread)
    return np.where(patient_counts < FEWEST, 1, spread)
