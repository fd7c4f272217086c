package dev.smolite.chat

import android.content.Context
import android.net.Uri
import android.provider.OpenableColumns
import java.io.File
import java.io.IOException

const val SUFFIX = ".litertlm"

/** The newest model in the app's folders: copied by [importModel], or pushed there with adb. */
fun findModel(context: Context): File? =
    listOfNotNull(context.filesDir, context.getExternalFilesDir(null))
        .flatMap { it.listFiles().orEmpty().toList() }
        .filter { it.name.endsWith(SUFFIX) }
        .maxByOrNull { it.lastModified() }

/** The name of a picked file, as its provider shows it. */
fun nameOf(context: Context, uri: Uri): String {
    val columns = arrayOf(OpenableColumns.DISPLAY_NAME)
    val name = context.contentResolver.query(uri, columns, null, null, null)?.use { if (it.moveToFirst()) it.getString(0) else null }
    return File(name ?: uri.lastPathSegment ?: "model").name
}

/** Copies a picked file into the app's own folder in place of the one before, because the runtime opens paths only. */
fun importModel(context: Context, uri: Uri, onMegabyte: (Int) -> Unit): File {
    val target = File(context.filesDir, nameOf(context, uri))
    val part = File(context.filesDir, "model.part")
    try {
        val source = context.contentResolver.openInputStream(uri) ?: throw IOException("$uri cannot be read.")
        source.use { input ->
            part.outputStream().use { output ->
                val buffer = ByteArray(1 shl 20)
                var copied = 0L
                while (true) {
                    val read = input.read(buffer)
                    if (read < 0) break
                    output.write(buffer, 0, read)
                    copied += read
                    onMegabyte((copied shr 20).toInt())
                }
            }
        }
        context.filesDir.listFiles().orEmpty().filter { it.name.endsWith(SUFFIX) }.forEach { it.delete() }
        if (!part.renameTo(target)) throw IOException("$target cannot be written.")
    } finally {
        part.delete()
    }
    return target
}
