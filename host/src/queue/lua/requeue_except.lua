-- Requeues the entries that are pending for this consumer and not in flight.
-- KEYS 1: stream
-- ARGV 1: group   2: our consumer   3: the idle ms of a requeued entry   4..: the
--   ids in flight
-- Returns how many were requeued. Afterwards any worker may reclaim them at once,
-- and this delivery does not count.
local in_flight, requeued, idle = {}, 0, tonumber(ARGV[3])
for i = 4, #ARGV do in_flight[ARGV[i]] = true end
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, ARGV[2])) do
  -- A requeued entry stays pending for this consumer until it is reclaimed.
  if not in_flight[row[1]] and row[3] < idle - 1000 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, row[1],
      'IDLE', ARGV[3], 'RETRYCOUNT', math.max(row[4] - 1, 0), 'JUSTID')
    requeued = requeued + 1
  end
end
return requeued
