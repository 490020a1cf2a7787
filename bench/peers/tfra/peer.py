"""TensorFlow Recommenders Addons: a cuckoo hash table of row vectors, unique mode.

Each step: tf.unique, look the rows up, row-wise Adagrad on them, insert them. Vector and sum of
squares lie in one row of the table, which costs it one look-up and one insertion instead of two.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tensorflow_recommenders_addons as tfra
from turns import Step, serve
from workload import EPS, LR, batches, gradients, hashed

FILL_ROWS = 1_000_000


def prepare(request: dict[str, Any]) -> tuple[Step, dict[str, Any]]:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keys, dim, ids = request["keys"], request["dim"], request["ids"]
    table = tfra.dynamic_embedding.CuckooHashTable(
        key_dtype=tf.int64,
        value_dtype=tf.float32,
        default_value=tf.zeros([dim + 1]),
        init_size=keys,
        name="rows",
    )
    for first in range(0, keys, FILL_ROWS):
        numbers = np.arange(first, min(first + FILL_ROWS, keys), dtype=np.int64)
        rows = np.full((len(numbers), dim + 1), 0.01, np.float32)
        table.insert(tf.constant(hashed(numbers).view(np.int64)), tf.constant(rows))
    drawn = batches(keys, request["batches"], ids)
    wanted = [tf.constant(hashed(b).view(np.int64)) for b in drawn]
    grad = tf.constant(gradients(ids, dim))

    @tf.function(input_signature=[tf.TensorSpec([ids], tf.int64)])
    def learn(batch: Any) -> Any:
        unique, _ = tf.unique(batch)  # [U]
        rows = table.lookup(unique)  # [U, D + 1]
        mine = grad[: tf.shape(unique)[0]]
        sums = rows[:, dim:] + tf.reduce_mean(mine * mine, 1, keepdims=True)  # [U, 1]
        vectors = rows[:, :dim] - LR / (tf.sqrt(sums) + EPS) * mine
        with tf.control_dependencies([table.insert(unique, tf.concat([vectors, sums], 1))]):
            return tf.shape(unique)[0]

    def step(n: int) -> None:
        learn(wanted[n % len(wanted)]).numpy()

    return step, {"version": tfra.__version__, "mode": "unique"}


serve(prepare)
