package dev.headwater.join;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import org.apache.flink.api.connector.sink2.CommittingSinkWriter;
import org.apache.flink.api.connector.sink2.StatefulSinkWriter;

/**
 * Hands verdicts to Kafka's writer in a thread of its own: serialized, compressed and batched there,
 * they cost about as much as the join itself, whose thread is what a task's events wait for.
 *
 * <p>The task's thread fills one buffer while the other is written; it waits where that takes longer.
 * Whatever else it asks of Kafka's writer it asks when both are empty, so two threads never ask at
 * once: a checkpoint holds all verdicts before it and none after. A failure to write is thrown at the
 * next verdict or checkpoint, and nothing is written after it.
 *
 * @param <S> the writer's state in a checkpoint
 * @param <C> what is committed behind a checkpoint
 */
final class VerdictWriter<S, C>
    implements StatefulSinkWriter<Verdict, S>, CommittingSinkWriter<Verdict, C> {
  private static final int VERDICTS_MAX = 4096;
  /** Of one buffer; a sample may be as large as the largest event. */
  private static final long BYTES_MAX = 8L << 20;

  /** Records carry no time of their own, and the serializer asks for none. */
  private static final Context NO_CONTEXT =
      new Context() {
        @Override
        public long currentWatermark() {
          return Long.MIN_VALUE;
        }

        @Override
        public Long timestamp() {
          return null;
        }
      };

  private final StatefulSinkWriter<Verdict, S> writer;
  private final CommittingSinkWriter<Verdict, C> committing;
  private final Thread thread;
  private final ReentrantLock lock = new ReentrantLock();
  private final Condition handed = lock.newCondition();
  private final Condition taken = lock.newCondition();
  private List<Verdict> filling = new ArrayList<>(VERDICTS_MAX);
  private long bytes;
  private boolean writing;
  private Throwable failure;

  /** `writer` is used from here on by this one only, and closed with it. */
  <W extends StatefulSinkWriter<Verdict, S> & CommittingSinkWriter<Verdict, C>> VerdictWriter(
      W writer) {
    this.writer = writer;
    this.committing = writer;
    thread = new Thread(this::writeAll, Thread.currentThread().getName() + ", writing");
    thread.setDaemon(true);
    thread.start();
  }

  @Override
  public void write(Verdict verdict, Context context) throws IOException, InterruptedException {
    lock.lockInterruptibly();
    try {
      while (failure == null && (filling.size() >= VERDICTS_MAX || bytes >= BYTES_MAX)) {
        taken.await();
      }
      requireSound();
      filling.add(verdict);
      bytes += verdict.value() == null ? 0 : verdict.value().length;
      if (filling.size() == 1) {
        handed.signal();
      }
    } finally {
      lock.unlock();
    }
  }

  @Override
  public void flush(boolean endOfInput) throws IOException, InterruptedException {
    awaitWritten();
    writer.flush(endOfInput);
  }

  @Override
  public Collection<C> prepareCommit() throws IOException, InterruptedException {
    awaitWritten();
    return committing.prepareCommit();
  }

  @Override
  public List<S> snapshotState(long checkpointId) throws IOException {
    return writer.snapshotState(checkpointId); // right behind prepareCommit, in the same thread
  }

  /** Leaves what is not written yet: it is behind the last checkpoint. */
  @Override
  public void close() throws Exception {
    thread.interrupt();
    try {
      thread.join();
    } finally {
      writer.close();
    }
  }

  private void awaitWritten() throws IOException, InterruptedException {
    lock.lockInterruptibly();
    try {
      while (failure == null && (writing || !filling.isEmpty())) {
        taken.await();
      }
      requireSound();
    } finally {
      lock.unlock();
    }
  }

  private void requireSound() throws IOException {
    if (failure != null) {
      throw new IOException("verdicts: not written to Kafka: " + failure.getMessage(), failure);
    }
  }

  private void writeAll() {
    List<Verdict> all = new ArrayList<>(VERDICTS_MAX);
    try {
      while (true) {
        all.clear();
        all = take(all);
        for (Verdict verdict : all) {
          writer.write(verdict, NO_CONTEXT);
        }
      }
    } catch (Throwable failed) { // closing interrupts, and nobody asks any more
      lock.lock();
      try {
        failure = failed;
        taken.signal();
      } finally {
        lock.unlock();
      }
    }
  }

  /** What was handed over, once there is something; `empty` takes what comes next. */
  private List<Verdict> take(List<Verdict> empty) throws InterruptedException {
    lock.lockInterruptibly();
    try {
      writing = false;
      if (filling.isEmpty()) {
        taken.signal();
      }
      while (filling.isEmpty()) {
        handed.await();
      }
      List<Verdict> all = filling;
      filling = empty;
      bytes = 0;
      writing = true;
      taken.signal();
      return all;
    } finally {
      lock.unlock();
    }
  }
}
