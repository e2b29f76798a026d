-- Searches a batch of one of a topic's keys for messages that contain an id, so
-- that the whole key need not be sent to the client. Changes nothing.
-- KEYS 1: the key to search   2: state, or for body and due the set of due times
-- ARGV 1: the strategy: waiting or pending (a stream), entries (a stream without
--   our group), list, body (delayed messages), due (the same by time), scored (a
--   sorted set), ranked (the same by score)   2: the cursor, '' for the start
--   3: the most messages of the batch; a scan may return a few more   4: the
--   bytes after which it ends   5: group   6: the id, '' for all messages   7: the
--   longest part of the id that JSON never escapes
-- Returns { the next cursor or '' at the end, how many were searched, matches }.
-- A match of waiting and entries: { id, fields }; of pending: { id, fields,
-- consumer, idle ms, delivery count }; of list: { item }; of body and due: {
-- token, fields, due in Unix ms, hash of the body }; of scored and ranked: {
-- member, score }.
local key, state, from, limit, bytes_left = KEYS[1], KEYS[2], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local group, id, unescaped = ARGV[5], ARGV[6], ARGV[7]
local matches, searched = {}, 0

-- The size of a message is known only after it was read, so few are read at
-- once, and one at first.
local READ_MAX = 16
local read_count = 0.5

local function has_capacity()
  return searched < limit and bytes_left > 0
end

local function next_count()
  read_count = math.min(read_count * 2, READ_MAX)
  return math.min(read_count, limit - searched)
end

local function count_bytes(text)
  bytes_left = bytes_left - #text
end

-- A text with a backslash may contain the id in an escaped form.
local function contains_id(text)
  if string.find(text, id, 1, true) then return true end
  return string.find(text, '\\', 1, true) and string.find(text, unescaped, 1, true)
end

local function any_contains_id(entry_id, fields)
  if contains_id(entry_id) then return true end
  for _, text in ipairs(fields) do
    if contains_id(text) then return true end
  end
  return false
end

local function is_not_pending(entry_id)
  local rows = redis.pcall('XPENDING', key, group, entry_id, entry_id, 1)
  return rows.err or #rows == 0
end

-- Visits the entries of a stream behind this one, or all of them for ''.
local function each_entry(behind, visit)
  while has_capacity() do
    local count = next_count()
    local entries = redis.call('XRANGE', key, behind == '' and '-' or '(' .. behind, '+', 'COUNT', count)
    for _, entry in ipairs(entries) do
      searched, behind = searched + 1, entry[1]
      for _, text in ipairs(entry[2]) do count_bytes(text) end
      if any_contains_id(entry[1], entry[2]) then visit(entry) end
    end
    if #entries < count then return '' end
  end
  return behind
end

-- Visits the pairs of a hash or sorted set, by HSCAN or ZSCAN.
local function each_scanned(command, visit)
  local cursor = from == '' and '0' or from
  repeat
    local page = redis.call(command, key, cursor, 'COUNT', next_count())
    cursor = page[1]
    for i = 1, #page[2], 2 do
      searched = searched + 1
      count_bytes(page[2][i])
      count_bytes(page[2][i + 1])
      visit(page[2][i], page[2][i + 1])
    end
  until cursor == '0' or not has_capacity()
  return cursor == '0' and '' or cursor
end

-- Visits the pairs of a sorted set in the order of its scores.
local function each_ranked(set, visit)
  local first = tonumber(from == '' and 0 or from)
  while has_capacity() do
    local count = next_count()
    local rows = redis.call('ZRANGE', set, first, first + count - 1, 'WITHSCORES')
    for i = 1, #rows, 2 do
      if not has_capacity() then return integer(first) end
      searched, first = searched + 1, first + 1
      count_bytes(rows[i])
      visit(rows[i], rows[i + 1])
    end
    if #rows < count * 2 then return '' end
  end
  return integer(first)
end

local search = {}

function search.waiting()
  local behind = waits_behind(key, state, group)
  if not behind then return '' end
  if from == '' or is_behind(behind, from) then from = behind end
  return each_entry(from, function(entry)
    if is_not_pending(entry[1]) then matches[#matches + 1] = { entry[1], unpacked(entry[2]) } end
  end)
end

function search.pending()
  if redis.call('TYPE', key).ok ~= 'stream' then return '' end
  local rows = redis.pcall('XPENDING', key, group, from == '' and '-' or '(' .. from, '+', limit)
  if rows.err then
    -- Without the group no message is in flight.
    if string.find(rows.err, 'NOGROUP', 1, true) then return '' end
    error(rows)
  end
  for _, row in ipairs(rows) do
    if not has_capacity() then break end
    searched, from = searched + 1, row[1]
    local entry = redis.call('XRANGE', key, row[1], row[1])[1]
    for _, text in ipairs(entry and entry[2] or {}) do count_bytes(text) end
    if entry and any_contains_id(entry[1], entry[2]) then
      matches[#matches + 1] = { row[1], unpacked(entry[2]), row[2], row[3], row[4] }
    end
  end
  return has_capacity() and '' or from
end

function search.entries()
  return each_entry(from, function(entry)
    matches[#matches + 1] = { entry[1], unpacked(entry[2]) }
  end)
end

-- The cursor is the position of the last searched item and its text, since items
-- move to the left while others pop. If the text exists twice, a part is searched
-- again; if it does not exist any more, all of the list is.
function search.list()
  if redis.call('TYPE', key).ok ~= 'list' then return '' end
  local at, text = string.match(from, '^(%d+):(.*)$')
  local first = 0
  if at then
    at = tonumber(at)
    if redis.call('LINDEX', key, at) ~= text then at = redis.call('LPOS', key, text) or -1 end
    first = at + 1
  end
  while has_capacity() do
    local count = next_count()
    local items = redis.call('LRANGE', key, first, first + count - 1)
    for _, item in ipairs(items) do
      searched, text = searched + 1, item
      count_bytes(item)
      if contains_id(item) then matches[#matches + 1] = { item } end
    end
    if #items < count then return '' end
    first = first + count
  end
  return integer(first - 1) .. ':' .. text
end

local function delayed(token, packed, due)
  due = due or redis.call('ZSCORE', state, token)
  if packed and due and contains_id(packed) then
    matches[#matches + 1] = { token, unpacked(cmsgpack.unpack(packed)), due, redis.sha1hex(packed) }
  end
end

function search.body()
  return each_scanned('HSCAN', delayed)
end

function search.due()
  return each_ranked(state, function(token, due)
    local packed = redis.call('HGET', key, token)
    count_bytes(packed or '')
    delayed(token, packed, due)
  end)
end

function search.scored()
  return each_scanned('ZSCAN', function(member, score)
    if contains_id(member) then matches[#matches + 1] = { member, score } end
  end)
end

function search.ranked()
  return each_ranked(key, function(member, score) matches[#matches + 1] = { member, score } end)
end

local cursor = search[ARGV[1]]()
return { cursor, searched, matches }
