-- Drops a piece of the oldest dead letters.
-- KEYS 1: the dead letters   2: where the drop is to be counted, the state
-- ARGV 1: every one up to this id, or empty for what the others say   2: every
--   one older than this in ms, or 0   3: while all have more bytes than this, or
--   0   4: how many at most   5: no more once they had so many bytes
-- Returns how many; 0 is the end. May be sent twice: what is to go goes anyway.
local dead, last, age, bytes = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

-- How many are to go for the bytes: by the mean of all, and of that only half,
-- since the oldest may be the largest. The next call asks again. All parts are
-- looked at only where a few say that it may be too much: it is a long question.
local function too_many()
  local guess = bytes > 0 and redis.call('MEMORY', 'USAGE', dead)
  if not guess or guess * 2 < bytes then return 0 end
  local all = redis.call('MEMORY', 'USAGE', dead, 'SAMPLES', 0)
  if all <= bytes then return 0 end
  return math.max(1, math.floor(redis.call('XLEN', dead) * (all - bytes) / all / 2))
end

local goal = too_many()
local before, dropped, bytes_left = now_ms() - age, 0, tonumber(ARGV[5])

while dropped < tonumber(ARGV[4]) and bytes_left > 0 do
  local entry = redis.call('XRANGE', dead, '-', last ~= '' and last or '+', 'COUNT', 1)[1]
  if not entry then break end
  local died = tonumber(string.match(entry[1], '^%d+'))
  if not (last ~= '' or dropped < goal or (age > 0 and died < before)) then break end
  redis.call('XDEL', dead, entry[1])
  dropped = dropped + 1
  -- Redis gives no id without its letter.
  for _, word in ipairs(entry[2]) do bytes_left = bytes_left - #word end
end
if dropped > 0 and KEYS[2] then redis.call('HINCRBY', KEYS[2], 'dead-dropped', dropped) end
return dropped
