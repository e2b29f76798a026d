-- Makes leases begin anew, each for its owner, after a step of the clock.
-- KEYS 1: stream
-- ARGV 1: group   2: 1 for all leases, 0 for those that began just now or, as
--   only a clock that was set back makes them, in the future; which can't be
--   told apart, and need not be
-- Returns how many. Afterwards they have owner and delivery count as before.
local count, from = 0, '-'
while true do
  local rows = redis.call('XPENDING', KEYS[1], ARGV[1], from, '+', 1000)
  for _, row in ipairs(rows) do
    if ARGV[2] == '1' or row[3] == 0 then
      redis.call('XCLAIM', KEYS[1], ARGV[1], row[2], 0, row[1], 'JUSTID')
      count = count + 1
    end
    from = '(' .. row[1]
  end
  if #rows < 1000 then return count end
end
