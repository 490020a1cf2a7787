package dev.headwater.join;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.flink.api.connector.sink2.CommittingSinkWriter;
import org.apache.flink.api.connector.sink2.StatefulSinkWriter;

/**
 * {@link VerdictWriter} over a writer that keeps what it is given, and notes when two threads use it
 * at once. Prints what came of it, one line; a wrong one throws.
 */
public final class WriterDrive {
  private static final StatefulSinkWriter.Context NONE = null;

  private WriterDrive() {}

  /** `many SEED`, `fails AT`, `large`, `idle` or `close`. */
  public static void main(String[] arguments) throws Exception {
    switch (arguments[0]) {
      case "many" -> many(Long.parseLong(arguments[1]));
      case "fails" -> fails(Integer.parseInt(arguments[1]));
      case "large" -> large();
      case "idle" -> idle();
      default -> close();
    }
  }

  private static Verdict verdict(long offset, int bytes) {
    byte[] value = bytes == 0 ? null : new byte[bytes]; // an undecodable event may have none
    return new Verdict(
        JoinOutput.Topic.SAMPLES, new byte[1], value, false, 0, offset, 0, 0, 0, 0, null);
  }

  /** Each checkpoint has all before it, in order, and none of what comes later. */
  private static void many(long seed) throws Exception {
    Random random = new Random(seed);
    Kept kept = new Kept();
    kept.slowEvery = 1 + random.nextInt(20_000);
    VerdictWriter<Long, Long> writer = new VerdictWriter<>(kept);
    long count = 0;
    for (int checkpoint = 0; checkpoint < 200; checkpoint++) {
      for (int n = random.nextInt(4) == 0 ? 0 : random.nextInt(20_000); n > 0; n--) {
        writer.write(verdict(count++, random.nextInt(3)), NONE);
      }
      if (random.nextBoolean()) {
        writer.flush(false);
        require(kept.flushed == count, "flushed " + kept.flushed + " of " + count);
      }
      long committed = writer.prepareCommit().iterator().next();
      require(committed == count, "committed " + committed + " of " + count);
      require(writer.snapshotState(checkpoint).equals(List.of(count)), "snapshot");
    }
    writer.close();
    require(kept.closed, "closed");
    System.out.println(count);
  }

  /** Prints how many were written and the first error. */
  private static void fails(int at) throws Exception {
    Kept kept = new Kept();
    kept.failsAt = at;
    VerdictWriter<Long, Long> writer = new VerdictWriter<>(kept);
    String first = null;
    for (long n = 0; first == null; n++) {
      try {
        writer.write(verdict(n, 1), NONE);
        if (n == at) { // it is known at the checkpoint, if not before
          writer.flush(false);
        }
      } catch (IOException failed) {
        first = failed.getMessage();
        require(failed.getCause() instanceof IllegalStateException, "cause");
      }
    }
    for (int i = 0; i < 3; i++) {
      int of = i;
      refused(() -> writer.write(verdict(-1, 1), NONE), "write " + of);
      refused(() -> writer.flush(true), "flush " + of);
      refused(writer::prepareCommit, "commit " + of);
    }
    writer.close();
    require(kept.flushed < 0, "flushed behind a failure");
    System.out.println(kept.count.get() + " " + first);
  }

  /** Prints how many of 1 MiB are taken while none gets written. */
  private static void large() throws Exception {
    Kept kept = new Kept();
    kept.gate = new CountDownLatch(1);
    VerdictWriter<Long, Long> writer = new VerdictWriter<>(kept);
    AtomicLong taken = new AtomicLong();
    Thread task =
        new Thread(
            () -> {
              try {
                for (int n = 0; n < 60; n++) {
                  writer.write(verdict(n, 1 << 20), NONE);
                  taken.incrementAndGet();
                }
                writer.flush(false);
              } catch (Exception failed) {
                throw new IllegalStateException(failed);
              }
            });
    task.start();
    long before = -1;
    while (taken.get() == 0 || taken.get() != before) { // until it waits
      before = taken.get();
      Thread.sleep(300);
    }
    kept.gate.countDown();
    task.join(30_000);
    require(kept.flushed == 60, "flushed " + kept.flushed);
    writer.close();
    System.out.println(before);
  }

  /** Nobody asks for it: one verdict is written by itself. */
  private static void idle() throws Exception {
    Kept kept = new Kept();
    VerdictWriter<Long, Long> writer = new VerdictWriter<>(kept);
    for (int n = 1; n <= 3; n++) {
      writer.write(verdict(n - 1, 1), NONE);
      for (long i = 0; kept.count.get() < n; i++) {
        require(i < 10_000, "not written");
        Thread.sleep(1);
      }
    }
    writer.close();
    System.out.println(kept.count.get());
  }

  /** It ends though its writer stands still, and writes no more. */
  private static void close() throws Exception {
    Kept kept = new Kept();
    kept.gate = new CountDownLatch(1);
    VerdictWriter<Long, Long> writer = new VerdictWriter<>(kept);
    for (int n = 0; n < 100; n++) {
      writer.write(verdict(n, 1), NONE);
    }
    writer.close();
    require(kept.closed, "closed");
    kept.gate.countDown();
    Thread.sleep(100);
    System.out.println(kept.count.get());
  }

  private interface Call {
    void run() throws Exception;
  }

  private static void refused(Call call, String what) throws Exception {
    try {
      call.run();
    } catch (IOException expected) {
      return;
    }
    throw new IllegalStateException(what + ": expected a refusal");
  }

  private static void require(boolean held, String what) {
    if (!held) {
      throw new IllegalStateException(what);
    }
  }

  /** Counts verdicts, whose offsets must go up by one. */
  private static final class Kept
      implements StatefulSinkWriter<Verdict, Long>, CommittingSinkWriter<Verdict, Long> {
    final AtomicLong count = new AtomicLong();
    volatile long flushed = -1;
    volatile boolean closed;
    CountDownLatch gate;
    int slowEvery;
    long failsAt = -1;
    private final AtomicBoolean used = new AtomicBoolean();
    private final List<Long> wrong = new ArrayList<>();

    @Override
    public void write(Verdict verdict, Context context) throws InterruptedException {
      enter();
      try {
        if (gate != null) {
          gate.await();
        }
        if (verdict.offset() == failsAt) {
          throw new IllegalStateException("broken");
        }
        if (slowEvery > 0 && verdict.offset() % slowEvery == 0) {
          TimeUnit.MILLISECONDS.sleep(1);
        }
        if (verdict.offset() != count.getAndIncrement()) {
          wrong.add(verdict.offset());
        }
      } finally {
        used.set(false);
      }
    }

    @Override
    public void flush(boolean endOfInput) {
      enter();
      require(wrong.isEmpty(), "out of order: " + wrong);
      flushed = count.get();
      used.set(false);
    }

    @Override
    public Collection<Long> prepareCommit() {
      enter();
      used.set(false);
      return List.of(count.get());
    }

    @Override
    public List<Long> snapshotState(long checkpointId) {
      enter();
      used.set(false);
      return List.of(count.get());
    }

    @Override
    public void close() {
      enter();
      closed = true;
      used.set(false);
    }

    private void enter() {
      require(used.compareAndSet(false, true), "used by two threads at once");
    }
  }
}
