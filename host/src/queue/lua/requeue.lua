-- Requeues one message that this worker can't run now.
-- KEYS 1: stream
-- ARGV 1: group   2: our consumer   3: the idle ms of a requeued entry   4: its id
-- Returns 1, or 0 where another consumer owns it. Afterwards any other worker may
-- reclaim it at once, and this delivery does not count. May be sent twice.
local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[4], ARGV[4], 1)[1]
if not row or row[2] ~= ARGV[2] then return 0 end
-- The delivery of an entry that is requeued already is not counted any more.
if row[3] >= tonumber(ARGV[3]) - 1000 then return 1 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[4],
  'IDLE', ARGV[3], 'RETRYCOUNT', math.max(row[4] - 1, 0), 'JUSTID')
return 1
