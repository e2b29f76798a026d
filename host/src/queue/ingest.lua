-- Moves a piece of a list, which plain clients fill, into the work stream.
-- KEYS 1: the list   2: in   3: work   4: state
-- ARGV 1: how many at most   2: how many bytes at most, but always one
--   3: the end of the list to take from, left or right
-- Returns how many. Afterwards they are in the work stream in the order of that
-- end, and nowhere else: read, insert, and only then delete, so that a refused
-- insert leaves them where they were.
local limit, bytes_left = tonumber(ARGV[1]), tonumber(ARGV[2])

-- Large ones are found out by reading them: one at first, and then a few.
local AT_ONCE_MAX = 16

-- The next behind so many, in the order of the end.
local function read(list, from_left, behind)
  local count = behind == 0 and 1 or math.min(AT_ONCE_MAX, limit - behind)
  if from_left then return redis.call('LRANGE', list, behind, behind + count - 1) end
  local items, turned = redis.call('LRANGE', list, -behind - count, -behind - 1), {}
  for n = #items, 1, -1 do turned[#turned + 1] = items[n] end
  return turned
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

-- First what a worker had in hand when it was lost.
local moved = move(KEYS[2], true)
if moved == 0 and redis.call('TYPE', KEYS[1]).ok == 'list' then
  moved = move(KEYS[1], ARGV[3] == 'left')
  if redis.call('HGET', KEYS[4], 'kind') ~= 'list' then redis.call('HSET', KEYS[4], 'kind', 'list') end
end
return moved
