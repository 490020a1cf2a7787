package dev.headwater.join;

/** An event that cannot be decoded; the message says what was expected and what came. */
final class BadEvent extends Exception {
  private static final long serialVersionUID = 1L;

  BadEvent(String reason) {
    super(reason, null, false, false); // bad input is ordinary input: no stack trace
  }
}
