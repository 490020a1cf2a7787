package dev.headwater.join;

/** Where pages are kept: Flink's keyed state, by key group, so that they move with their pairs. */
interface PageState {
  /** The key group of a pair. */
  int groupOf(PairKey key);

  /** Every page of this task's key groups; `dead` is null where none of it is. */
  void each(Visitor visitor) throws Exception;

  byte[] page(int group, long number) throws Exception;

  void keepPage(int group, long number, byte[] page) throws Exception;

  void keepDead(int group, long number, byte[] dead) throws Exception;

  void drop(int group, long number) throws Exception;

  /** Is told of pages. */
  interface Visitor {
    void visit(int group, long number, byte[] page, byte[] dead);
  }
}
