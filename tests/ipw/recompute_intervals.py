#!/usr/bin/env python3
"""Recomputes the 95 % intervals of a run's figures from its directory with numpy, and prints them as JSON.

Follows docs/ipw.md, section "Intervals", with other algorithms than the program: Student's quantiles come from an integral, block
sums from a matrix, and the limits that are monotone in the number of right answers from all candidates. Host scope, idle
power included. tests/ipw/intervals.rs compares the output with the program's to 1e-9.
"""

import json
import math
import pathlib
import sys

import numpy

Z95 = 1.959963984540054
GAUSS_LEGENDRE = numpy.polynomial.legendre.leggauss(400)


def rows_of(run):
    """The last row of each query in the order of the file."""
    rows = {}
    for line in (pathlib.Path(run) / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        key = (row["id"], row.get("repeat", 0))
        rows.pop(key, None)
        rows[key] = row
    covered = []
    for (question, repeat), row in rows.items():
        energy = row.get("energy") or {}
        wrong = row.get("error") is not None and row.get("delivered")
        score = 0.0 if wrong else row.get("score")
        if row.get("error") is not None and not wrong:
            continue
        if score is None or energy.get("share_uj") is None or not energy.get("span_ns"):
            continue
        window = energy.get("window_uj")
        if window is None and energy.get("at_once") == 1:
            window = energy["share_uj"]
        seconds = energy["span_ns"] / 1e9
        tokens, logprob = row.get("tokens_out"), row.get("mean_logprob")
        covered.append(
            {
                "question": question,
                "repeat": repeat,
                "start": row["began_ns"] / 1e9,
                "end": row["began_ns"] / 1e9 + row["duration_ns"] / 1e9,
                "score": float(score),
                "energy": energy["share_uj"] / 1e6,
                "power": math.nan if window is None else window / 1e6 / seconds,
                "attributed": energy["share_uj"] / 1e6 / seconds,
                "tokens": math.nan if tokens is None else float(tokens),
                "logprob": math.nan if logprob is None else logprob,
            }
        )
    return sorted(covered, key=lambda row: row["start"])


def student(between, degrees):
    """The quantile t for which |t| is below it with this probability."""
    nodes, weights = GAUSS_LEGENDRE
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        angle = (low + high) / 2
        at = (nodes + 1) * angle / 2
        inside = 2 * scale * angle / 2 * (weights * numpy.cos(at) ** (degrees - 1)).sum()
        low, high = (angle, high) if inside < between else (low, angle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def agresti_coull(proportion, trials):
    everything = trials + Z95**2
    center = (proportion * trials + Z95**2 / 2) / everything
    half_width = Z95 * numpy.sqrt(center * (1 - center) / everything)
    return numpy.maximum(center - half_width, 0), numpy.minimum(center + half_width, 1)


class Sample:
    def __init__(self, rows):
        self.count = len(rows)
        for name in ("score", "energy", "power", "attributed", "tokens", "logprob"):
            setattr(self, name, numpy.array([row[name] for row in rows]))
        names = list(dict.fromkeys(row["question"] for row in rows))
        self.question = numpy.array([names.index(row["question"]) for row in rows])
        self.questions = len(names)
        starts = numpy.array([row["start"] for row in rows])
        overlaps = sum(
            sum(1 for other in range(at + 1, self.count) if starts[other] < rows[at]["end"])
            for at in range(self.count)
        )
        self.block = 1
        if starts[0] < starts[-1]:
            self.block = min(1 + 2 * math.ceil(overlaps / self.count), max(self.count // 3, 1))
        self.degrees = self.questions - 1
        if self.block > 1:
            of_blocks = 3 * (self.count - self.block) // (2 * self.block)
            self.degrees = max(1, min(of_blocks, self.questions - 1))

    def by_question(self, values):
        return numpy.bincount(self.question, weights=values, minlength=self.questions)

    def errors(self, deviations):
        """The standard errors of a mean between questions and between blocks of time."""
        sums = self.by_question(deviations)
        between = math.sqrt((sums**2).sum() * self.questions / (self.questions - 1)) / self.count
        if self.block < 2 or self.count <= self.block:
            return between, 0.0
        at = (numpy.arange(self.count)[:, None] + numpy.arange(self.block)) % self.count
        blocks = deviations[at].mean(axis=1)
        # The variance of the mean of count / block resampled blocks, and its bias for few blocks.
        variance = (blocks**2).mean() * self.block / self.count
        return between, math.sqrt(variance * self.count / (self.count - self.block))

    def cost(self, costs):
        """The mean of a cost with half of its interval's width on the logarithmic scale."""
        mean = costs.mean()
        between, in_time = (error / mean for error in self.errors(costs - mean))
        logs = numpy.log(self.by_question(costs) / self.by_question(numpy.ones(self.count)))
        variance = logs.var(ddof=1)
        log_normal = math.sqrt(variance / self.questions + variance**2 / (2 * (self.questions - 1)))
        log_normal = min(log_normal, (1 + 1.1 / math.sqrt(self.questions)) * between)
        return mean, student(0.96, self.degrees) * max(between, log_normal, in_time)

    def mean_interval(self, costs):
        mean, half_width = self.cost(costs)
        return [mean * math.exp(-half_width), mean * math.exp(half_width)]

    def score_per_cost(self, costs):
        mean, of_cost = self.cost(costs)
        by_question = self.by_question(costs - mean)
        deviation = by_question[self.question]
        scale = self.count * math.sqrt((by_question**2).mean())

        def limits(scores, products):
            """Both limits for arrays of sums of scores and of score × deviation."""
            share = numpy.clip(scores / self.count, 0, 1)
            low, high = agresti_coull(share, self.questions)
            low, high = numpy.minimum(low, share), numpy.maximum(high, share)
            spread = scale * numpy.sqrt(share * (1 - share))
            with numpy.errstate(divide="ignore", invalid="ignore"):
                correlation = numpy.where(spread > 0, (products - share * deviation.sum()) / spread, 0)
                correlation = numpy.clip(correlation, -1, 0)

                def half_width(of_score):
                    return numpy.sqrt(of_score**2 + of_cost**2 - 2 * correlation * of_score * of_cost)

                lower = share / mean * numpy.exp(-half_width(numpy.log(share / low)))
                upper = share / mean * numpy.exp(half_width(numpy.log(high / share)))
            return numpy.where(low > 0, lower, 0), numpy.where(share > 0, upper, high / mean)

        scores, products = self.score.sum(), (self.score * deviation).sum()
        # The most expensive right answers made wrong, one after another; the cheapest wrong ones made right.
        right = numpy.flatnonzero(self.score > 0)
        right = right[numpy.argsort(-deviation[right], kind="stable")]
        wrong = numpy.flatnonzero(self.score < 1)
        wrong = wrong[numpy.argsort(deviation[wrong], kind="stable")]
        less, more = self.score[right], 1 - self.score[wrong]
        fewer = numpy.append(0, numpy.cumsum(less)), numpy.append(0, numpy.cumsum(less * deviation[right]))
        added = numpy.append(0, numpy.cumsum(more)), numpy.append(0, numpy.cumsum(more * deviation[wrong]))
        _, high = limits(scores - fewer[0], products - fewer[1])
        low, _ = limits(scores + added[0], products + added[1])
        return [low.min(), high.max()]

    def log_figure(self, figure, influence):
        half_width = student(0.95, self.degrees) * max(self.errors(influence))
        return [figure * math.exp(-half_width), figure * math.exp(half_width)]

    def tokens_per_joule(self):
        known = ~numpy.isnan(self.tokens)
        tokens, energy = numpy.where(known, self.tokens, 0), numpy.where(known, self.energy, 0)
        influence = tokens / tokens.mean() - energy / energy.mean()
        return self.log_figure(tokens.sum() / energy.sum(), influence)

    def perplexity(self, costs=None):
        known = ~numpy.isnan(self.logprob)
        logprob = self.logprob[known].mean()
        influence = numpy.zeros(self.count)
        influence[known] = self.logprob[known] - logprob
        figure = math.exp(-logprob)
        if costs is not None:
            influence[known] -= costs[known] / costs[known].mean() - 1
            figure = 1 / figure / costs[known].mean()
        return self.log_figure(figure, influence / known.mean())


def main():
    sample = Sample(rows_of(sys.argv[1]))
    accuracy = agresti_coull(sample.score.mean(), sample.questions)
    energy = sample.mean_interval(sample.energy)
    intervals = {
        "accuracy": [float(limit) for limit in accuracy],
        "energy_j": energy,
        "power_w": sample.mean_interval(sample.power),
        "attributed_power_w": sample.mean_interval(sample.attributed),
        "per_watt": sample.score_per_cost(sample.power),
        "per_joule": sample.score_per_cost(sample.energy),
        "queries_per_kwh": [3.6e6 / energy[1], 3.6e6 / energy[0]],
        "tokens_per_joule": sample.tokens_per_joule(),
        "perplexity": sample.perplexity(),
        "perplexity_per_watt": sample.perplexity(sample.power),
        "perplexity_per_joule": sample.perplexity(sample.energy),
    }
    print(json.dumps({name: [float(limit) for limit in of] for name, of in intervals.items()}))


if __name__ == "__main__":
    main()
