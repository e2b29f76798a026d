-- Starts leases again after a step of Redis' clock, each for its consumer.
-- KEYS 1: stream   2: deleted
-- ARGV 1: group   2: 1 for all leases; 0 for those with an idle time of 0: they
--   began just now or, after a clock was set back, in the future   3: the stream's
--   class in tokens   4: how long `deleted` is stored, in ms
-- Returns how many were reset. Consumers and delivery counts are unchanged.
local count, from = 0, '-'
while true do
  local rows = redis.call('XPENDING', KEYS[1], ARGV[1], from, '+', 1000)
  for _, row in ipairs(rows) do
    if ARGV[2] == '1' or row[3] == 0 then
      local id = redis.call('XCLAIM', KEYS[1], ARGV[1], row[2], 0, row[1], 'JUSTID')[1]
      -- It was deleted; XCLAIM has removed its pending row.
      if not id then
        redis.call('HSET', KEYS[2], ARGV[3] .. ':' .. row[1], row[2])
        redis.call('PEXPIRE', KEYS[2], ARGV[4])
      end
      count = count + 1
    end
    from = '(' .. row[1]
  end
  if #rows < 1000 then return count end
end
