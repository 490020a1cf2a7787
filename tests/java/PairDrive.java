package dev.headwater.join;

import dev.headwater.join.SplitAlignment.Clock;
import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Map;
import java.util.TreeMap;

/**
 * The operator's parts without Flink, for counts that Flink would take hours for.
 *
 * <p>`join`: events and watermarks in, records out; now and then the pairs are written to their pages,
 * as for a checkpoint, and every third time they are found again from these alone, as after a restart:
 * in between, what two checkpoints have not seen touched is read from its page.
 * `scan`: bytes in, reasons out. `decimal`: numbers in, their digits out. `align`: records of
 * partitions and questions in, what to hold out.
 */
public final class PairDrive {
  private PairDrive() {}

  /**
   * `join KINDS POLICY ELAPSED LATENESS KEPT RATES CHECKPOINT_EVERY`, `scan STREAM KINDS`,
   * `decimal N,N` or `align`.
   */
  public static void main(String[] arguments) throws Exception {
    DataInputStream in = new DataInputStream(new BufferedInputStream(System.in, 1 << 16));
    DataOutputStream out = new DataOutputStream(new BufferedOutputStream(System.out, 1 << 16));
    if (arguments[0].equals("scan")) {
      scan(arguments, in, out);
    } else if (arguments[0].equals("decimal")) {
      ByteWriter digits = new ByteWriter();
      for (String number : arguments[1].split(",")) {
        out.write(digits.reset().ascii("x").decimal(Long.parseLong(number)).toBytes());
      }
    } else if (arguments[0].equals("align")) {
      align(in, out);
    } else {
      new Join(arguments, out).run(in);
    }
    out.flush();
  }

  private static byte[] bytes(DataInputStream in) throws Exception {
    byte[] content = new byte[in.readInt()];
    in.readFully(content);
    return content;
  }

  private static void scan(String[] arguments, DataInputStream in, DataOutputStream out)
      throws Exception {
    byte[][] kinds =
        Arrays.stream(arguments[2].split(","))
            .map(kind -> kind.getBytes(StandardCharsets.UTF_8))
            .toArray(byte[][]::new);
    EventScanner scanner = new EventScanner(arguments[1].equals("conversions"), kinds, true);
    while (in.readByte() != 'E') {
      String reason = "";
      try {
        scanner.scan(bytes(in));
      } catch (BadEvent bad) {
        reason = bad.getMessage();
      }
      out.writeUTF(reason.length() > 1000 ? reason.substring(0, 1000) : reason);
    }
  }

  private static void align(DataInputStream in, DataOutputStream out) throws Exception {
    SplitAlignment alignment = null;
    for (int tag = in.read(); tag > 0; tag = in.read()) {
      switch (tag) {
        case 'S' -> alignment = new SplitAlignment(in.readLong(), in.readLong(), in.readBoolean());
        case 'N' -> {
          Clock clock = alignment.clock(in.readUTF());
          clock.note(record(in.readLong(), in.readLong(), in.readBoolean()));
        }
        case 'X' -> alignment.expect(in.readUTF());
        case 'R' -> alignment.remove(in.readUTF());
        case 'Q' -> {
          SplitAlignment.Change change = alignment.change(in.readLong());
          out.writeUTF(String.join(" ", change.hold()));
          out.writeUTF(String.join(" ", change.release()));
          out.writeBoolean(alignment.holds());
          out.flush();
        }
        default -> throw new IllegalArgumentException("align: " + tag);
      }
    }
  }

  private static Event record(long eventMs, long producedMs, boolean clocked) {
    return new Event(
        false, null, null, eventMs, -1, null, null, null, null, 0, 0, producedMs, clocked, null,
        null);
  }

  /** What Flink would keep, of four key groups. */
  private static final class Pages implements PageState {
    private final Map<Integer, Map<Long, byte[]>> pages = new TreeMap<>();
    private final Map<Integer, Map<Long, byte[]>> dead = new TreeMap<>();

    private static Map<Long, byte[]> of(Map<Integer, Map<Long, byte[]>> all, int group) {
      return all.computeIfAbsent(group, missing -> new TreeMap<>());
    }

    @Override
    public int groupOf(PairKey key) {
      return key.hashCode() & 3;
    }

    @Override
    public void each(Visitor visitor) {
      pages.forEach(
          (group, own) ->
              own.forEach(
                  (number, page) ->
                      visitor.visit(group, number, page, of(dead, group).get(number))));
    }

    @Override
    public byte[] page(int group, long number) {
      return of(pages, group).get(number);
    }

    @Override
    public void keepPage(int group, long number, byte[] page) {
      if (of(pages, group).put(number, page) != null) {
        throw new IllegalStateException("a page was written twice");
      }
    }

    @Override
    public void keepDead(int group, long number, byte[] bits) {
      of(dead, group).put(number, bits);
    }

    @Override
    public void drop(int group, long number) {
      of(pages, group).remove(number);
      of(dead, group).remove(number);
    }

    void requireNothingLeft() {
      pages.values().forEach(own -> requireEmpty(own));
      dead.values().forEach(own -> requireEmpty(own));
    }

    private static void requireEmpty(Map<Long, byte[]> own) {
      if (!own.isEmpty()) {
        throw new IllegalStateException("pages left behind: " + own.keySet());
      }
    }
  }

  private static final class Join implements JoinOutput {
    private final JoinSettings settings;
    private final DataOutputStream out;
    private final int checkpointEvery;
    private final Pages pages = new Pages();
    private JoinLoop join;
    private long watermarkMs = Long.MIN_VALUE;
    private int touches;

    Join(String[] arguments, DataOutputStream out) throws Exception {
      settings =
          JoinSettings.of(
              arguments[1],
              arguments[2].equals("correct"),
              Long.parseLong(arguments[3]),
              Long.parseLong(arguments[4]),
              Double.parseDouble(arguments[5]),
              arguments[6]);
      checkpointEvery = Integer.parseInt(arguments[7]);
      this.out = out;
      restart();
    }

    private void restart() throws Exception {
      join = new JoinLoop(settings, pages, this);
      join.restore();
    }

    void run(DataInputStream in) throws Exception {
      EventScanner impressions = new EventScanner(false, settings.kindNames(), true);
      EventScanner conversions = new EventScanner(true, settings.kindNames(), true);
      for (long offset = 0; ; ) {
        int tag = in.readByte();
        if (tag == 'E') {
          break;
        } else if (tag == 'W') {
          watermarkMs = in.readLong();
          join.onWatermark(watermarkMs);
        } else {
          boolean conversion = tag == 'C';
          EventScanner scanner = conversion ? conversions : impressions;
          byte[] payload = bytes(in);
          scanner.scan(payload);
          Event event =
              new Event(
                  conversion, PairKey.of(scanner.userId, scanner.itemId), scanner.id,
                  scanner.eventMs, scanner.kind, scanner.named, scanner.domain, scanner.value,
                  payload, 0, offset++, scanner.eventMs + 7, true, null, null);
          join.onEvent(event, watermarkMs);
        }
        if (++touches % checkpointEvery == 0) {
          join.write();
          if (touches / checkpointEvery % 3 == 0) {
            restart();
          }
        }
      }
      join.write();
      if (join.size() > 0) {
        throw new IllegalStateException("pairs left behind: " + join.size());
      }
      pages.requireNothingLeft();
    }

    @Override
    public void emit(
        Topic topic, byte[] key, byte[] value, boolean conversion, int partition, long offset,
        long eventMs, long producedMs, String reason) {
      try {
        out.writeByte(topic.ordinal());
        out.writeLong(offset);
        out.writeLong(watermarkMs);
        out.writeInt(value.length);
        out.write(value);
      } catch (Exception failed) {
        throw new IllegalStateException(failed);
      }
    }

    @Override
    public void countClosed(boolean sampled) {}
  }
}
