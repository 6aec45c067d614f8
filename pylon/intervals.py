"""95 % intervals: of a score, over patients; of a difference, over patients and seeds. Arrays in, numbers out."""

import numpy as np
from scipy import sparse, stats

RESAMPLES = 2000
TAILS = (2.5, 97.5)  # percent
FEWEST = 10  # patients whose resamples are taken at their word


def resample_patients(patients: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw as many patients as there are, with replacement: images of one patient are no independent witnesses.

    Args:
        patients: (N,) the patient of each image or box.

    Returns:
        patient_of: (N,) 0 .. P - 1.
        drawn: (RESAMPLES, P) float32, how often each patient is in each resample.
    """
    _, patient_of = np.unique(patients, return_inverse=True)
    count = patient_of.max() + 1
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(RESAMPLES)])
    return patient_of, drawn.astype(np.float32)


def resampled_auroc(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """AUROC of every class, and the two means over classes, in resamples of the patients.

    An AUROC is the share of pairs of a positive and a negative image that are in order. They are counted once for each
    pair of patients, and a resample weighs the counts: no image is sorted again.

    Args:
        labels: (N, C), 0 or 1.
        scores: (N, C), higher for more likely.
        patients: (N,) the patient of each image.

    Returns:
        (RESAMPLES, C + 2): the classes, their mean weighted by the positives, their plain mean; NaN where a resample
        has no positive or no negative.
    """
    patient_of, drawn = resample_patients(patients)
    areas, positives = np.full((2, RESAMPLES, labels.shape[1]), np.nan)
    for c in range(labels.shape[1]):
        of_positives, of_negatives = (patients_by_images(patient_of, labels[:, c] == label) for label in (1, 0))
        positives[:, c] = drawn @ of_positives.sum(axis=1)
        pairs = positives[:, c] * (drawn @ of_negatives.sum(axis=1))
        with_positive = np.flatnonzero(of_positives.sum(axis=1))
        ordered = ordered_pairs(scores[:, c], labels[:, c] == 1, of_positives[with_positive], of_negatives)
        won = ((drawn[:, with_positive] @ ordered) * drawn).sum(axis=1, dtype=np.float64)
        areas[:, c] = np.divide(won, pairs, out=np.full(RESAMPLES, np.nan), where=pairs > 0)
    return with_means(areas, positives)


def patients_behind_auroc(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """How many patients each score of `resampled_auroc` is of, (C + 2,) int.

    Of a class those with positives or those with negatives, whichever are fewer; of the means all.

    Args:
        labels: (N, C), 0 or 1.
        patients: (N,) the patient of each image.
    """
    sides = [[len(np.unique(patients[column == label])) for label in (0, 1)] for column in labels.T]
    return np.array([*(min(side) for side in sides), *[len(np.unique(patients))] * 2])


def ordered_pairs(
    scores: np.ndarray, positive: np.ndarray, of_positives: sparse.csr_array, of_negatives: sparse.csr_array
) -> np.ndarray:
    """Pairs of a positive and a negative image that are in order, a tie for half a one: (P, Q) float32, by patients."""
    negatives, positives = scores[~positive, None], scores[positive]
    counts = np.zeros((of_positives.shape[0], of_negatives.shape[0]), np.float32)
    for first in range(0, len(positives), 256):
        chunk = slice(first, first + 256)
        ahead = (negatives < positives[chunk]).astype(np.float32)
        ahead[negatives == positives[chunk]] = 0.5
        counts += of_positives[:, chunk] @ (of_negatives @ ahead).T
    return counts


def patients_by_images(patient_of: np.ndarray, chosen: np.ndarray) -> sparse.csr_array:
    """(P, chosen images) float32, 1 where an image is of a patient."""
    rows = patient_of[chosen]
    shape = (patient_of.max() + 1, len(rows))
    return sparse.csr_array((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), shape)


def with_means(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R, K) scores, NaN where undefined -> (R, K + 2) with their weighted and their plain mean over those defined."""
    defined = ~np.isnan(scores)
    scores_or_0, weights = np.nan_to_num(scores), np.where(defined, weights, 0)
    with np.errstate(invalid="ignore"):  # 0 / 0 where none is defined
        weighted = (scores_or_0 * weights).sum(axis=1) / weights.sum(axis=1)
        plain = scores_or_0.sum(axis=1) / defined.sum(axis=1)
    return np.column_stack([scores, weighted, plain])


def resampled_accuracy(hits: np.ndarray, classes: np.ndarray, patients: np.ndarray, names: list[str]) -> np.ndarray:
    """Point accuracy of every class named, and of all boxes pooled, in resamples of the patients.

    Args:
        hits: (N,) in [0, 1], a box; or a difference of two such; NaN for a box that is not to be counted.
        classes: (N,) names of the class of each box.
        patients: (N,) the patient of each box.

    Returns:
        (RESAMPLES, len(names) + 1); NaN where a resample has no box of a class.
    """
    patient_of, drawn = resample_patients(patients)
    member = np.column_stack([*(classes == name for name in names), np.ones(len(hits), bool)])
    counted = np.where(np.isnan(hits)[:, None], False, member)
    of_images = patients_by_images(patient_of, np.ones(len(hits), bool))
    hit, boxes = (drawn @ (of_images @ values) for values in (counted * np.nan_to_num(hits)[:, None], 1.0 * counted))
    return np.divide(hit, boxes, out=np.full(boxes.shape, np.nan), where=boxes > 0)


def too_little(scores: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Where resampling has too little to go on: fewer than 10 patients, or not one patient's worth of hits, or misses.

    Args:
        scores: (..., K) in [0, 1].
        patients: (K,) how many patients each is of.
    """
    hits = scores * patients
    return (patients < FEWEST) | (np.minimum(hits, patients - hits) < 1 - 1e-9)


def bounds(resamples: np.ndarray, patients: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """The 95 % interval of each score.

    Where there is too little to resample (`too_little`; or all resamples are alike) the interval reaches at least as
    far as the binomial one (Clopper-Pearson) of as many trials as there are patients: nearly exact for boxes, of which
    few patients have two; cautious for an AUROC, whose variance is at most that (Birnbaum and Klose 1957), of as many
    trials as there are patients on its smaller side.

    Args:
        resamples: (R, K) resampled scores.
        patients: (K,) how many patients each is of.
        scores: (K,) the scores; without them, as of differences, such columns have no bounds.

    Returns:
        low and high, (2, K); NaN where there are none.
    """
    both = np.full((2, resamples.shape[1]), np.nan)
    varied = np.nanstd(np.where(np.isnan(resamples).all(axis=0), 0, resamples), axis=0) > 1e-9
    both[:, varied] = np.nanpercentile(resamples[:, varied], TAILS, axis=0)
    if scores is None:
        return np.where(patients < FEWEST, np.nan, both)
    hits = scores * patients
    low = np.where(hits > 0, stats.beta.ppf(0.025, hits, patients - hits + 1), 0)
    high = np.where(hits < patients, stats.beta.ppf(0.975, hits + 1, patients - hits), 1)
    little = (too_little(scores, patients) | ~varied) & ~np.isnan(scores)
    return np.where(little, [np.fmin(both[0], low), np.fmax(both[1], high)], both)


def difference_of_seeds(
    ours: np.ndarray, theirs: np.ndarray, of_patients: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference of two means over seeds, with its 95 % interval: Welch's t, plus what patients add, where known.

    Args:
        ours: (n, K) scores, a row a seed.
        theirs: (m, K).
        of_patients: (K,) standard deviation of the difference over resampled patients (`paired_spread`). With it, a
            side with one seed adds nothing: how much its seeds differ is not known. Without it, both need two.

    Returns:
        difference, low, high, (K,) each; the bounds are NaN where there are too few seeds.
    """
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    if of_patients is None and min(len(ours), len(theirs)) < 2:
        return difference, *np.full((2, len(difference)), np.nan)
    parts = [(np.zeros_like(difference) if of_patients is None else of_patients**2, np.inf)]
    parts += [(side.var(axis=0, ddof=1) / len(side), len(side) - 1) for side in (ours, theirs) if len(side) > 1]
    variance = sum(part for part, _ in parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / sum(part**2 / df for part, df in parts)  # Welch and Satterthwaite
        half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    half = np.where(variance > 0, half, 0)
    return difference, difference - half, difference + half


def paired_spread(ours: np.ndarray, theirs: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Standard deviation of the difference of two scores over resampled patients, the same for both: (K,).

    Where one of them has too little to resample, or no resample differs from another, it is at least that of a
    binomial bound of as many trials as there are patients: the next patient might differ. Of fewer than 10 patients it
    is 1, with which nothing is decided.

    Args:
        ours, theirs: (R, K) resampled scores.
        patients: (K,) how many patients each is of.
    """
    spread = np.nanstd(ours - theirs, axis=0)
    little = too_little(np.nanmean([ours, theirs], axis=1), patients).any(axis=0) | (spread < 1e-9)
    of_the_next = (1 - 0.025 ** (1 / patients)) / stats.norm.ppf(0.975)
    return np.where(patients < FEWEST, 1, np.where(little, np.fmax(spread, of_the_next), spread))
