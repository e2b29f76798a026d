-- Evicts a batch of the oldest dead letters that are over the caps.
-- KEYS 1: the dead letters   2: state
-- ARGV 1: the highest age in ms, or 0 for any   2: the most bytes of memory of
--   all, or 0 for any number   3: the most letters of the batch   4: the bytes
--   after which the batch ends
-- Returns how many were evicted { because of their age, because of the bytes };
-- twice 0 is the end. Afterwards `dead-evicted` in the state has counted them. May
-- be sent twice: what is over the caps is evicted anyway.
local dead, age, bytes = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])

-- How many have to be evicted for the bytes: estimated by the mean size, and half
-- of that, since the oldest may be the largest. The next call estimates again.
-- Measuring all entries takes long, so it is done only if a sample says that
-- there may be too many bytes.
local function excess()
  local sampled = bytes > 0 and redis.call('MEMORY', 'USAGE', dead)
  if not sampled or sampled * 2 < bytes then return 0 end
  local all = redis.call('MEMORY', 'USAGE', dead, 'SAMPLES', 0)
  if all <= bytes then return 0 end
  return math.max(1, math.floor(redis.call('XLEN', dead) * (all - bytes) / all / 2))
end

local excess_count, before = excess(), now_ms() - age
local by_age, by_bytes, bytes_left = 0, 0, tonumber(ARGV[4])

while by_age + by_bytes < tonumber(ARGV[3]) and bytes_left > 0 do
  local entry = redis.call('XRANGE', dead, '-', '+', 'COUNT', 1)[1]
  if not entry then break end
  local is_old = age > 0 and tonumber(string.match(entry[1], '^%d+')) < before
  if not is_old and by_age + by_bytes >= excess_count then break end
  redis.call('XDEL', dead, entry[1])
  if is_old then by_age = by_age + 1 else by_bytes = by_bytes + 1 end
  -- Redis returns no id without the fields, so all of the entry was read.
  for _, text in ipairs(entry[2]) do bytes_left = bytes_left - #text end
end
if by_age + by_bytes > 0 then redis.call('HINCRBY', KEYS[2], 'dead-evicted', by_age + by_bytes) end
return { by_age, by_bytes }
