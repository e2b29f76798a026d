-- Moves a piece of a list, which plain clients fill, into the work stream.
-- KEYS 1: the list   2: in   3: work   4: state
-- ARGV 1: how many at most   2: how many bytes at most, but always one
--   3: the end of the list to take from, left or right
-- Returns how many. Afterwards they are in the work stream in the order of that
-- end, and nowhere else: read, insert, and only then delete, so that a refused
-- insert leaves them where they were.
local limit, bytes_left = tonumber(ARGV[1]), tonumber(ARGV[2])

local function move(list, from_left)
  local moved = 0
  local items = from_left and redis.call('LRANGE', list, 0, limit - 1) or redis.call('LRANGE', list, -limit, -1)
  for n = 1, #items do
    local item = items[from_left and n or #items + 1 - n]
    bytes_left = bytes_left - #item
    if moved > 0 and bytes_left < 0 then break end
    redis.call('XADD', KEYS[3], '*', 'message', item)
    moved = moved + 1
  end
  if moved > 0 then
    if from_left then redis.call('LTRIM', list, moved, -1) else redis.call('LTRIM', list, 0, -moved - 1) end
  end
  return moved
end

-- First what a worker had in hand when it was lost.
local moved = move(KEYS[2], true)
if moved == 0 and redis.call('TYPE', KEYS[1]).ok == 'list' then
  moved = move(KEYS[1], ARGV[3] == 'left')
  if redis.call('HGET', KEYS[4], 'kind') ~= 'list' then redis.call('HSET', KEYS[4], 'kind', 'list') end
end
return moved
