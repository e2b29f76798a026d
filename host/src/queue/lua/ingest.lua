-- Moves a batch of a list, into which plain clients push, to the work stream.
-- KEYS 1: the list   2: in   3: work   4: state
-- ARGV 1: the most messages of the batch   2: the most bytes, but at least one
--   message   3: the end of the list to pop from, left or right
-- Returns how many were moved. Afterwards they are in the work stream in the order
-- of that end. They are read, added, and only then deleted, so a refused write
-- leaves them in the list.
local limit, bytes_left = tonumber(ARGV[1]), tonumber(ARGV[2])

-- The size of a message is known only after it was read, so few are read at
-- once, and one at first.
local READ_MAX = 16

-- The next messages after the first `skipped`, in the order of the end.
local function read(list, from_left, skipped)
  local count = skipped == 0 and 1 or math.min(READ_MAX, limit - skipped)
  if from_left then return redis.call('LRANGE', list, skipped, skipped + count - 1) end
  local items, reversed = redis.call('LRANGE', list, -skipped - count, -skipped - 1), {}
  for n = #items, 1, -1 do reversed[#reversed + 1] = items[n] end
  return reversed
end

local function move(list, from_left)
  local moved = 0
  while moved < limit and bytes_left > 0 do
    local items = read(list, from_left, moved)
    if #items == 0 then break end
    for _, item in ipairs(items) do
      bytes_left = bytes_left - #item
      if moved > 0 and bytes_left < 0 then break end
      redis.call('XADD', KEYS[3], '*', 'message', item)
      moved = moved + 1
    end
  end
  if moved > 0 then
    if from_left then redis.call('LTRIM', list, moved, -1) else redis.call('LTRIM', list, 0, -moved - 1) end
  end
  return moved
end

-- First the messages that a blocking read of some worker has popped.
local moved = move(KEYS[2], true)
if moved == 0 and redis.call('TYPE', KEYS[1]).ok == 'list' then
  moved = move(KEYS[1], ARGV[3] == 'left')
  if redis.call('HGET', KEYS[4], 'kind') ~= 'list' then redis.call('HSET', KEYS[4], 'kind', 'list') end
end
return moved
