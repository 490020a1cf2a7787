package dev.headwater.join;

/** An event that cannot be decoded; the message says what was expected and what came. */
final class BadEvent extends Exception {
  private static final long serialVersionUID = 1L;

  private static final int REASON_CHARS_MAX = 500;

  BadEvent(String reason) {
    super(shortened(reason), null, false, false); // bad input is ordinary input: no stack trace
  }

  /** A reason is a header of the record: what it quotes from the event must not grow it at will. */
  private static String shortened(String reason) {
    return reason.length() <= REASON_CHARS_MAX
        ? reason
        : reason.substring(0, REASON_CHARS_MAX) + "...";
  }
}
